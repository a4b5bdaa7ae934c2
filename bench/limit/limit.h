/* What the two bare reference servers share: start-up, the listening socket, and the orderly end.
 * Nothing here runs per message.
 *
 * Single-threaded, header only, included by one .c file per program. A start-up failure ends the
 * program with status 1 and a line on stderr.
 */
#ifndef PENSTOCK_BENCH_LIMIT_H
#define PENSTOCK_BENCH_LIMIT_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
  kEventsPerTurnMax = 512,
  kAcceptsPerTurnMax = 64,
  kListenBacklog = 4096,
  kDescriptorsMax = 1 << 17,
};

_Noreturn static inline void fail(const char* what) {
  perror(what);
  exit(1);
}

/* Accepts nothing but "--port NUMBER"; 0, the default, lets the kernel choose. */
static inline uint16_t port_from_arguments(int argument_count, char** arguments) {
  if (argument_count == 1) return 0;
  char* end = NULL;
  long port = -1;
  if (argument_count == 3 && strcmp(arguments[1], "--port") == 0)
    port = strtol(arguments[2], &end, 10);
  if (end == NULL || end == arguments[2] || *end != '\0' || port < 0 || port > 65535) {
    fprintf(stderr, "usage: %s [--port NUMBER]\n", arguments[0]);
    exit(64);
  }
  return (uint16_t)port;
}

/* Raises the descriptor limit as far as allowed; returns how many descriptors a table indexed by
 * them must hold. */
static inline size_t raise_descriptor_limit(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) fail("getrlimit");
  limit.rlim_cur = limit.rlim_max < kDescriptorsMax ? limit.rlim_max : kDescriptorsMax;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) fail("setrlimit");
  return (size_t)limit.rlim_cur;
}

static inline void set_interest(int epoll, int operation, int fd, uint32_t interest) {
  struct epoll_event event = {.events = interest, .data = {.fd = fd}};
  if (epoll_ctl(epoll, operation, fd, &event) != 0) fail("epoll_ctl");
}

/* SIGTERM and SIGINT arrive as a readable descriptor, so the loop needs no check per turn and no
 * signal is lost between turns. */
static inline int open_stop_signal(void) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  if (sigprocmask(SIG_BLOCK, &signals, NULL) != 0) fail("sigprocmask");
  const int fd = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
  if (fd < 0) fail("signalfd");
  return fd;
}

/* Listens on 127.0.0.1 and prints the line run.py waits for. */
static inline int open_listener(uint16_t port, const char* backend_name) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("socket");
  const int on = 1;
  if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0) fail("SO_REUSEADDR");
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t address_bytes = sizeof address;
  if (bind(fd, (struct sockaddr*)&address, sizeof address) != 0) fail("bind");
  if (listen(fd, kListenBacklog) != 0) fail("listen");
  if (getsockname(fd, (struct sockaddr*)&address, &address_bytes) != 0) fail("getsockname");
  printf("listening on 127.0.0.1:%u (backend %s)\n", (unsigned)ntohs(address.sin_port),
         backend_name);
  fflush(stdout);
  return fd;
}

/* Accepts what waits, at most kAcceptsPerTurnMax a turn (level-triggered: the rest is announced
 * again). Out of descriptors is a failed benchmark, not something to work around. */
__attribute__((cold, noinline, unused)) static void accept_connections(int epoll, int listener) {
  for (int accepted = 0; accepted < kAcceptsPerTurnMax; ++accepted) {
    const int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      if (errno == EAGAIN) return;
      if (errno == EINTR || errno == ECONNABORTED) continue;
      fail("accept4");
    }
    const int on = 1;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0) fail("TCP_NODELAY");
    set_interest(epoll, EPOLL_CTL_ADD, fd, EPOLLIN);
  }
}

#endif
