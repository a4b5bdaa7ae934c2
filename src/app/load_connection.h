// One of the connections a load is made of, made anew as often as its run wants: sends the pattern,
// verifies what comes back, and counts what goes wrong. Owned by the run, on its loop. It decides
// neither when to connect nor when to stop; it tells its owner, who does.
//
// It always reads while it sends (but for a slow reader's pace), and holds back its own sending
// before its connection's high-water mark would stop the reading: an echo server that stops reading
// a client which does not read can therefore never wait for this one while this one waits for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "app/load_options.h"
#include "app/load_pace.h"
#include "app/load_pattern.h"
#include "app/load_statistics.h"
#include "app/load_window.h"
#include "penstock/tcp/client.h"
#include "penstock/tcp/connection.h"

namespace penstock::app {

class LoadConnection;

/// What all connections of a run share. Outlives them.
struct LoadContext {
  EventLoop& loop;
  const LoadOptions& options;
  const LoadPattern& pattern;
  LoadStatistics& statistics;
  bool sending = true;  ///< False: no new byte is sent, only what is owed is waited for.
};

/// How a connection ended.
enum class LoadEnding : std::uint8_t {
  done,   ///< It did what it was for.
  lost,   ///< It broke, or was cut short; counted already.
  wrong,  ///< A wrong byte came; counted already.
};

/// Hears of each connection, on the loop.
class LoadOwner {
 public:
  virtual void connection_up(LoadConnection& connection) = 0;
  /// It may be started again, from a later turn on.
  virtual void connection_down(LoadConnection& connection, LoadEnding ending) = 0;
  virtual void attempt_failed(LoadConnection& connection, const ConnectFailure& failure) = 0;
  virtual void wrong_byte_found(const WrongByte& byte) = 0;

 protected:
  ~LoadOwner() = default;
};

class LoadConnection {
 public:
  static constexpr Duration kConnectTimeout = std::chrono::seconds(5);

  /// Throws std::bad_alloc.
  LoadConnection(LoadContext& context, LoadOwner& owner);
  LoadConnection(const LoadConnection&) = delete;
  LoadConnection& operator=(const LoadConnection&) = delete;

  /// Begins to connect; failed attempts are tried again until it stops.
  Result<void> start() { return client_.start(); }
  /// Sends no more (context.sending is false by now), and ends once nothing is owed. False: there
  /// was no connection, and there will be none.
  bool stop_sending();
  /// Ends at once what is left after stop_sending(), and counts what never came.
  void give_up();
  /// Ends at once, and counts nothing.
  void abort();
  /// Now and then: goes on with what only time allows.
  void on_tick(TimePoint now);

  // -- For the owner --

  std::uint64_t messages = 0;  ///< Back on all its connections.
  std::size_t failures = 0;    ///< Connections lost since a message was last back.
  bool retired = false;        ///< It is not used any more.

 private:
  enum class Stage : std::uint8_t {
    away,       // there is no connection
    talking,    // bytes go and come
    finishing,  // all is back, FIN is out, the other side's is awaited
    settled,    // what there is to say about this connection has been said
  };

  void set_callbacks();
  void on_connect(TcpConnection& connection);
  void on_message(TcpConnection& connection, std::span<const std::byte> bytes);
  void on_peer_finished(TcpConnection& connection);
  void on_close(const CloseReport& report);
  void fill(TcpConnection& connection);
  bool verify(std::span<const std::byte> bytes);
  bool found_wrong(WrongByte byte);
  void keep_pace(TcpConnection& connection, std::size_t bytes, TimePoint now);
  void go_on(TcpConnection& connection);
  void settle(TcpConnection& connection, LoadEnding ending);
  std::uint64_t expected() const noexcept;

  LoadContext& context_;
  LoadOwner& owner_;
  LoadWindow window_;
  LoadPace pace_;
  std::uint64_t serial_ = 0;  // of the connection, in the whole run
  std::uint64_t start_ = 0;   // where in the pattern it begins
  Stage stage_ = Stage::away;
  LoadEnding ending_ = LoadEnding::done;  // once settled
  bool reading_paused_ = false;
  bool refused_ = false;  // a send was: on_tick() tries again
  TcpClient client_;      // last: it ends first, and its callbacks need the rest
};

}  // namespace penstock::app
