/* What the peer servers share: nothing that runs per message, and nothing of the peers' libraries.
 *
 * A peer is an echo or bulk server written against another library, in the style that the library's
 * documentation teaches, to measure beside Penstock. All are single-threaded, set TCP_NODELAY,
 * listen on a free port of 127.0.0.1 with a backlog of 4,096, read up to 64 KiB at a time where the
 * library lets one choose, and end with status 0 on SIGTERM. Valid C17 and C++; header only.
 */
#ifndef PENSTOCK_BENCH_PEER_H
#define PENSTOCK_BENCH_PEER_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>

enum { kListenBacklog = 4096, kReadBytesMax = 64 * 1024, kRequestBytes = 8 };

/* Start-up failed. */
static inline void die(const char* what) {
  fprintf(stderr, "%s\n", what);
  exit(1);
}

/* A peer that resets must not end the server, and 10,000 connections need 10,000 descriptors. */
static inline void prepare_process(void) {
  struct rlimit limit;
  signal(SIGPIPE, SIG_IGN);
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) die("getrlimit");
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) die("setrlimit");
}

static inline struct sockaddr_in any_local_port(void) {
  struct sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

/* Prints the line run.py waits for. */
static inline void print_listening(const struct sockaddr_in* address, const char* name) {
  printf("listening on 127.0.0.1:%u (backend %s)\n", (unsigned)ntohs(address->sin_port), name);
  fflush(stdout);
}

static inline uint64_t read_request(const unsigned char bytes[kRequestBytes]) {
  uint64_t wanted_bytes = 0;
  for (int index = 0; index < kRequestBytes; ++index)
    wanted_bytes = (wanted_bytes << 8) | bytes[index];
  return wanted_bytes;
}

#endif
