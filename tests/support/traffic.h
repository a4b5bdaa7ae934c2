// Short verbs for conformance tests: recognisable payloads, small kernel buffers, and raw clients that read and write while the
// loop under test turns. Used on the loop's thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "support/world.h"

namespace penstock::test {

/// Text whose every position is recognisable: a byte that is lost, repeated or moved shows.
std::string pattern(std::size_t size);

/// Where two texts begin to differ; npos when they are equal. For comparing megabytes.
std::size_t first_difference(std::string_view left, std::string_view right);

/// Makes the kernel's buffers from the server to this client small (64 KiB each), so that output
/// is pending soon.
void shrink_buffers(const World::Link& link);

/// What the client's kernel has now.
std::string receive_available(const World::Link& link);
/// The client reads, while the loop turns, until it has `size` bytes or its end has come.
std::string collect(World& world, const World::Link& link, std::size_t size);
/// The client reads, while the loop turns, until its end: the text, and 0 (FIN) or -errno.
Received collect_to_end(World& world, const World::Link& link);
/// The client sends all of the text, while the loop turns.
void feed(World& world, const World::Link& link, std::string_view text);
/// The client sends, without a turn of the loop, and waits until the server's kernel has it all.
void deliver(const World::Link& link, std::string_view text);
/// The client sends FIN.
void send_fin(const World::Link& link);
/// The client resets the connection.
void send_reset(World::Link& link);

/// Moves the loop's clock, and lets it turn.
void pass(World& world, Duration time);

/// Send and sendmsg calls so far.
std::uint64_t send_calls(const World& world);

/// The events for which the descriptor is watched: by the last poll, or by an epoll instance of
/// this process, as the kernel tells; nothing when it is not.
std::optional<std::uint32_t> armed_events(const World& world, int fd);

}  // namespace penstock::test
