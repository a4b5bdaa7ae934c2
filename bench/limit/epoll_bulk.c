/* The limit for bulk: the least a correct server of large replies over level-triggered epoll can
 * do.
 *
 * Protocol: a request is 8 bytes, the big-endian count N of bytes wanted, at most
 * PENSTOCK_BENCH_BULK_PAYLOAD_BYTES; the reply is N bytes of the pattern in ../pattern.h from
 * position 0. A larger N closes the connection.
 *
 * One thread. One immutable payload serves all connections; nothing is copied in user space.
 * EPOLLOUT is armed only while a reply is partly sent, and the connection is not read meanwhile, so
 * a peer that sends requests without reading costs nothing. On the stop signal it prints how many
 * sends there were and how many were short: a run without short sends did not measure what it meant
 * to.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "../pattern.h"
#include "limit.h"

enum { kRequestBytes = 8 };

struct connection {
  size_t sent_bytes;
  size_t reply_bytes; /* 0: no reply under way */
  size_t request_bytes;
  unsigned char request[kRequestBytes];
};

static unsigned char* payload;
static struct connection*
    connection_of; /* by descriptor; all zero between replies and after a close */
static int epoll;
static uint64_t send_count;
static uint64_t short_send_count;

static void close_connection(int fd) {
  memset(&connection_of[fd], 0, sizeof connection_of[fd]);
  close(fd);
}

/* Sends once what is left of the reply. Returns false if the connection is gone. */
static bool send_reply(int fd, struct connection* connection) {
  const size_t wanted_bytes = connection->reply_bytes - connection->sent_bytes;
  const ssize_t sent = send(fd, payload + connection->sent_bytes, wanted_bytes, MSG_NOSIGNAL);
  if (sent < 0 && errno != EAGAIN && errno != EINTR) {
    close_connection(fd);
    return false;
  }
  const size_t taken = sent < 0 ? 0 : (size_t)sent;
  ++send_count;
  if (taken < wanted_bytes) ++short_send_count;
  connection->sent_bytes += taken;
  return true;
}

static bool reply_is_pending(const struct connection* connection) {
  return connection->sent_bytes < connection->reply_bytes;
}

static void begin_reply(int fd, struct connection* connection) {
  uint64_t wanted_bytes = 0;
  for (int index = 0; index < kRequestBytes; ++index)
    wanted_bytes = (wanted_bytes << 8) | connection->request[index];
  if (wanted_bytes > PENSTOCK_BENCH_BULK_PAYLOAD_BYTES) {
    close_connection(fd);
    return;
  }
  connection->request_bytes = 0;
  connection->reply_bytes = (size_t)wanted_bytes;
  connection->sent_bytes = 0;
  if (wanted_bytes == 0 || !send_reply(fd, connection)) return;
  if (reply_is_pending(connection)) set_interest(epoll, EPOLL_CTL_MOD, fd, EPOLLOUT);
}

static void receive_request(int fd, struct connection* connection) {
  const ssize_t received = recv(fd, connection->request + connection->request_bytes,
                                kRequestBytes - connection->request_bytes, 0);
  if (received <= 0) {
    if (received == 0 || (errno != EAGAIN && errno != EINTR)) close_connection(fd);
    return;
  }
  connection->request_bytes += (size_t)received;
  if (connection->request_bytes == kRequestBytes) begin_reply(fd, connection);
}

static void continue_reply(int fd, struct connection* connection) {
  if (!send_reply(fd, connection)) return;
  if (!reply_is_pending(connection)) set_interest(epoll, EPOLL_CTL_MOD, fd, EPOLLIN);
}

int main(int argument_count, char** arguments) {
  const uint16_t port = port_from_arguments(argument_count, arguments);
  payload = malloc(PENSTOCK_BENCH_BULK_PAYLOAD_BYTES);
  connection_of = calloc(raise_descriptor_limit(), sizeof(struct connection));
  epoll = epoll_create1(EPOLL_CLOEXEC);
  if (payload == NULL || connection_of == NULL || epoll < 0) fail("start");
  fill_pattern(payload, PENSTOCK_BENCH_BULK_PAYLOAD_BYTES, 0);
  const int stop_signal = open_stop_signal();
  const int listener = open_listener(port, "bare-epoll");
  set_interest(epoll, EPOLL_CTL_ADD, stop_signal, EPOLLIN);
  set_interest(epoll, EPOLL_CTL_ADD, listener, EPOLLIN);

  static struct epoll_event events[kEventsPerTurnMax];
  for (;;) {
    const int count = epoll_wait(epoll, events, kEventsPerTurnMax, -1);
    if (count < 0 && errno != EINTR) fail("epoll_wait");
    for (int index = 0; index < count; ++index) {
      const int fd = events[index].data.fd;
      if (fd > listener) {
        struct connection* connection = &connection_of[fd];
        if (reply_is_pending(connection)) {
          continue_reply(fd, connection);
        } else {
          receive_request(fd, connection);
        }
      } else if (fd == listener) {
        accept_connections(epoll, listener);
      } else {
        printf("%llu sends, %llu of them short\n", (unsigned long long)send_count,
               (unsigned long long)short_send_count);
        return 0;
      }
    }
  }
}
