/* The limit: the least a correct, bounded echo server over level-triggered epoll can do. Penstock
 * is measured against it.
 *
 * One thread, one 64 KiB buffer for all connections. Per message: one recv, one send; no epoll_ctl,
 * no allocation, no clock. A connection whose peer does not read owns at most one rest of 64 KiB,
 * and is not read until that is gone. It refuses to do anything else: no timeouts, no limits on the
 * number of connections, no half-close beyond "EOF is answered with a close once everything was
 * echoed".
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "limit.h"

enum {
  kReceiveBytesMax = 64 * 1024,
  kReceivesPerEventMax =
      16, /* a peer that always fills the buffer must not keep the others waiting */
};

/* Keeps what is rare out of the loop, so that the compiler spills no registers for it: a tenth of
 * the instructions per message. */
#define RARE __attribute__((cold, noinline))

/* What the kernel did not take of one echo. Exists only while EPOLLOUT is armed and EPOLLIN is not.
 */
struct rest {
  size_t sent_bytes;
  size_t bytes;
  unsigned char data[];
};

static unsigned char received_bytes[kReceiveBytesMax] __attribute__((aligned(64)));
static struct rest** rest_of; /* by descriptor; null: nothing pending */
static int epoll;

RARE static void close_connection(int fd) {
  free(rest_of[fd]);
  rest_of[fd] = NULL;
  close(fd);
}

RARE static void keep_rest(int fd, const unsigned char* data, size_t bytes) {
  struct rest* rest = malloc(sizeof *rest + bytes);
  if (rest == NULL) fail("malloc");
  rest->sent_bytes = 0;
  rest->bytes = bytes;
  memcpy(rest->data, data, bytes);
  rest_of[fd] = rest;
  set_interest(epoll, EPOLL_CTL_MOD, fd, EPOLLOUT);
}

RARE static void answer_short_send(int fd, size_t received, ssize_t sent) {
  if (sent < 0 && errno != EAGAIN && errno != EINTR) {
    close_connection(fd);
    return;
  }
  const size_t taken = sent < 0 ? 0 : (size_t)sent;
  keep_rest(fd, received_bytes + taken, received - taken);
}

RARE static void send_rest(int fd) {
  struct rest* rest = rest_of[fd];
  const ssize_t sent =
      send(fd, rest->data + rest->sent_bytes, rest->bytes - rest->sent_bytes, MSG_NOSIGNAL);
  if (sent < 0) {
    if (errno != EAGAIN && errno != EINTR) close_connection(fd);
    return;
  }
  rest->sent_bytes += (size_t)sent;
  if (rest->sent_bytes < rest->bytes) return;
  free(rest);
  rest_of[fd] = NULL;
  set_interest(epoll, EPOLL_CTL_MOD, fd, EPOLLIN);
}

RARE static void answer_no_bytes(int fd, ssize_t received) {
  if (received == 0 || (errno != EAGAIN && errno != EINTR)) close_connection(fd);
}

static void echo(int fd) {
  for (int receives = 0; receives < kReceivesPerEventMax; ++receives) {
    const ssize_t received = recv(fd, received_bytes, kReceiveBytesMax, 0);
    if (received <= 0) {
      answer_no_bytes(fd, received);
      return;
    }
    const ssize_t sent = send(fd, received_bytes, (size_t)received, MSG_NOSIGNAL);
    if (sent != received) {
      answer_short_send(fd, (size_t)received, sent);
      return;
    }
    if (received < kReceiveBytesMax) return;
  }
}

int main(int argument_count, char** arguments) {
  const uint16_t port = port_from_arguments(argument_count, arguments);
  rest_of = calloc(raise_descriptor_limit(), sizeof(struct rest*));
  epoll = epoll_create1(EPOLL_CLOEXEC);
  if (rest_of == NULL || epoll < 0) fail("start");
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
      /* The lowest free number is taken first, so every connection is above the listener. */
      if (fd > listener) {
        if (rest_of[fd] == NULL) {
          echo(fd);
        } else {
          send_rest(fd);
        }
      } else if (fd == listener) {
        accept_connections(epoll, listener);
      } else {
        return 0; /* the stop signal; the kernel closes what is open */
      }
    }
  }
}
