// Where a reference script plays: one loop on one FaultyKernel, turned step by step, with raw sockets of the real kernel at the
// other ends. It keeps the account of every connection of the library, and what came of the whole as a few lines of text, so that
// a disturbed run can be compared with a clean one. Owner: one run of one script; one thread.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "penstock/bytes/memory_budget.h"
#include "penstock/penstock.h"
#include "penstock/sim/faulty_kernel.h"
#include "support/sockets.h"

namespace penstock::test {

/// One connection of the library, from on_connect to on_close.
struct Life {
  const char* side = nullptr;  ///< "server" or "client".
  TcpConnection* connection = nullptr;
  std::string received;
  std::optional<CloseReport> report;
};

/// A raw socket at the other end of one.
struct Peer {
  UniqueFd fd;
  std::string received;
  std::optional<int> end;  ///< 0 for FIN, else an errno value.

  /// Sends all of it; a connection that has been reset takes none.
  void send(std::string_view text) const;
  void finish() const { linux_kernel().shutdown(fd.get(), SHUT_WR); }
  /// Reads what is there, or one piece of at most `most` bytes.
  void read(std::optional<std::size_t> most = {});
};

/// What the connections of one side do. Empty ones are not set.
struct Part {
  std::function<void(TcpConnection&)> on_connect{};
  std::function<void(TcpConnection&, std::string_view)> on_message{};
  std::function<void(TcpConnection&)> on_peer_finished{};
};

class Stage {
 public:
  /// `real`: the loop talks to the real kernel itself, and the clock cannot be moved.
  enum class Play : std::uint8_t { disturbed, real };

  explicit Stage(Backend backend, Play play = Play::disturbed);
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;
  /// Whoever calls back goes first.
  ~Stage();

  FaultyKernel kernel{linux_kernel()};
  std::unique_ptr<EventLoop> loop;  ///< From make_loop() on.
  std::unique_ptr<TcpServer> server;
  std::unique_ptr<TcpClient> client;
  std::string to_server;  ///< What each connection of the server is sent,
  std::string to_client;  ///< each one of the client,
  std::string to_peer;    ///< and each raw peer.
  std::vector<std::unique_ptr<Life>> lives;
  std::vector<std::string> notes;     ///< Further lines of the outcome.
  std::vector<std::error_code> told;  ///< Every error that the library has told anybody.

  /// Makes the loop. False: it says why not.
  bool make_loop();
  /// Makes and starts the server. False: it says why not.
  bool serve(TcpServerOptions options, Part part, std::function<void()> on_stopped = {});
  /// Makes the client, and starts it in a turn of the loop.
  void connect(TcpClientOptions options, Part part);

  /// Destroys the server; its statistics stay.
  void retire_server();
  /// The server's, also when it has gone.
  ServerStatistics statistics() const { return server ? server->statistics() : last_statistics_; }

  /// One turn of the loop. When nothing happens, time passes.
  void turn();
  /// Turns the loop until the condition holds; false, and a line of the outcome, if it never does.
  bool until(std::string_view what, const std::function<bool()>& condition);
  /// Turns the loop until nothing has happened for some turns.
  void until_quiet();
  /// Moves the clock, and lets the loop turn.
  void pass(Duration time);
  /// Runs the action as a task of the loop.
  void in_loop(std::function<void()> action);
  /// Turns the loop until every connection has ended.
  void until_all_closed();
  std::size_t live() const;
  /// The raw peer that has just connected to the server, with `receive_buffer` bytes of kernel buffer if given.
  Peer connect_peer(std::optional<int> receive_buffer = {});
  /// Writes a line about it into the outcome. How much has come before a reset is up to the kernel.
  enum class Amount : std::uint8_t { told, untold };
  void note_peer(const Peer& peer, Amount amount = Amount::told);

  /// What came of it, as sorted lines.
  std::vector<std::string> outcome() const;
  /// Whether some error of that value has been told, or a connection refused and counted.
  bool was_told(int error) const;
  /// Whether all that was received is the beginning of what was sent.
  void expect_prefixes() const;

  std::uint64_t turns() const noexcept { return turns_; }

  /// From now on, allocation number `which` of all that the loop's turns make fails.
  void fail_allocation(std::size_t which) { allocation_to_fail_ = which; }
  void fail_no_allocation() { allocation_to_fail_.reset(); }
  bool allocation_failed() const noexcept { return allocation_failed_; }

 private:
  template <class Owner>
  void keep(Owner& owner, const char* side, Part part);
  Life* life_of(const TcpConnection& connection);
  void began(TcpConnection& connection, const char* side);
  void ended(TcpConnection& connection, const CloseReport& report);
  void step(Duration longest_wait);

  const Backend backend_;
  const Play play_;
  std::vector<std::unique_ptr<Life>> spare_;  // made beforehand: their making must not fail
  std::vector<std::string> peers_;
  ServerStatistics last_statistics_;
  std::uint64_t turns_ = 0;
  int idle_turns_ = 0;
  std::optional<std::size_t> allocation_to_fail_;
  bool allocation_failed_ = false;
};

/// What must hold behind every run, whatever failed in it: all connections have been reported as ended, what was received is the
/// beginning of what was sent, a fresh connection is served, no memory is charged, and no descriptor is lost. `descriptors`: those
/// open before the stage. The loop is gone afterwards.
void check_invariants(Stage& stage, std::size_t descriptors);

/// "ENOMEM", or the message of an error that is Penstock's own.
std::string error_word(std::error_code error);
std::string error_word(int error);

}  // namespace penstock::test
