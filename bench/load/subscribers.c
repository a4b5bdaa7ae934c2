/* The audience of the broadcast benchmark: many connections, one thread, level-triggered epoll;
 * prints one line of JSON.
 *
 * Each connection sends one byte to join. The first --stalled of them never read, with a small
 * receive buffer; the others read and check every message of --size bytes: its number (the next
 * one), the time it was sent at (CLOCK_MONOTONIC, nanoseconds; both 8 bytes, this machine's order),
 * and a body of the pattern of ../pattern.h that begins at its number. It ends when each of them has
 * had --messages, and says how long the messages took from publisher to reader.
 *
 * Exit status: 0 all well; 1 an operating error; 2 a wrong or missing byte; 64 usage.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../pattern.h"

enum {
  kHeaderBytes = 16,
  kEventsPerTurnMax = 512,
  kReceiveBytesMax = 64 * 1024,
  kConnectionsMax = 100000,
  kMessagesMax = 100000,
  kSilenceMillisecondsMax = 20000,
  kStalledReceiveBuffer = 4096,
};

enum exit_status { kExitOperatingError = 1, kExitWrongBytes = 2, kExitUsage = 64 };

struct options {
  struct sockaddr_in to;
  long connections;
  long stalled;
  long size;
  long messages;
};

struct reader {
  int fd;
  uint64_t messages; /* complete ones: the number of the next */
  uint64_t sent_at;
  size_t at; /* bytes of the message under way */
  unsigned char header[kHeaderBytes];
};

static void fail(const char* what) {
  fprintf(stderr, "subscribers: %s: %s\n", what, strerror(errno));
  exit(kExitOperatingError);
}

static void wrong(const struct reader* reader, const char* what) {
  fprintf(stderr, "subscribers: descriptor %d, message %llu, byte %zu: %s\n", reader->fd,
          (unsigned long long)reader->messages, reader->at, what);
  exit(kExitWrongBytes);
}

static void usage(void) {
  fprintf(
      stderr,
      "usage: subscribers --to IPV4:PORT --connections N --stalled N --size BYTES --messages N\n");
  exit(kExitUsage);
}

static long number(const char* text, long least, long most) {
  char* end = NULL;
  errno = 0;
  const long value = strtol(text, &end, 10);
  if (errno != 0 || end == text || *end != '\0' || value < least || value > most) usage();
  return value;
}

static struct options parse(int count, char** arguments) {
  struct options options = {.connections = 100, .size = 1024, .messages = 100};
  for (int i = 1; i < count; i += 2) {
    if (i + 1 >= count) usage();
    const char* name = arguments[i];
    const char* value = arguments[i + 1];
    if (strcmp(name, "--to") == 0) {
      char host[64];
      const char* colon = strrchr(value, ':');
      if (colon == NULL || (size_t)(colon - value) >= sizeof host) usage();
      memcpy(host, value, (size_t)(colon - value));
      host[colon - value] = '\0';
      options.to.sin_family = AF_INET;
      options.to.sin_port = htons((uint16_t)number(colon + 1, 1, 65535));
      if (inet_pton(AF_INET, host, &options.to.sin_addr) != 1) usage();
    } else if (strcmp(name, "--connections") == 0) {
      options.connections = number(value, 1, kConnectionsMax);
    } else if (strcmp(name, "--stalled") == 0) {
      options.stalled = number(value, 0, kConnectionsMax);
    } else if (strcmp(name, "--size") == 0) {
      options.size = number(value, kHeaderBytes, 1024 * 1024);
    } else if (strcmp(name, "--messages") == 0) {
      options.messages = number(value, 1, kMessagesMax);
    } else {
      usage();
    }
  }
  if (options.to.sin_family != AF_INET || options.stalled >= options.connections) usage();
  return options;
}

static int join(const struct options* options, int stalled) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("socket");
  const int small = kStalledReceiveBuffer;
  if (stalled != 0 && setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small) != 0)
    fail("SO_RCVBUF");
  if (connect(fd, (const struct sockaddr*)&options->to, sizeof options->to) != 0) fail("connect");
  if (send(fd, "j", 1, MSG_NOSIGNAL) != 1) fail("send");
  if (fcntl(fd, F_SETFL, O_NONBLOCK) != 0) fail("O_NONBLOCK");
  return fd;
}

static uint64_t nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

static uint64_t* latencies;
static size_t latency_count;

static void take(struct reader* reader, const unsigned char* bytes, size_t count,
                 const struct options* options, uint64_t now) {
  size_t used = 0;
  while (used < count) {
    if (reader->at < kHeaderBytes) {
      reader->header[reader->at++] = bytes[used++];
      if (reader->at < kHeaderBytes) continue;
      uint64_t message = 0;
      memcpy(&message, reader->header, sizeof message);
      memcpy(&reader->sent_at, reader->header + sizeof message, sizeof reader->sent_at);
      if (message != reader->messages) wrong(reader, "not the next message");
    } else {
      if (bytes[used++] != pattern_byte(reader->messages + reader->at)) wrong(reader, "wrong byte");
      ++reader->at;
    }
    if (reader->at < (size_t)options->size) continue;
    reader->at = 0;
    ++reader->messages;
    if (reader->messages > (uint64_t)options->messages) wrong(reader, "a message too many");
    latencies[latency_count++] = now - reader->sent_at;
  }
}

static int ascending(const void* left, const void* right) {
  const uint64_t a = *(const uint64_t*)left;
  const uint64_t b = *(const uint64_t*)right;
  return (a > b) - (a < b);
}

static double milliseconds_at(double share) {
  const size_t index = (size_t)(share * (double)(latency_count - 1));
  return (double)latencies[index] / 1e6;
}

int main(int count, char** arguments) {
  const struct options options = parse(count, arguments);
  const long healthy = options.connections - options.stalled;
  const size_t expected = (size_t)healthy * (size_t)options.messages;
  struct reader* readers = calloc((size_t)options.connections, sizeof *readers);
  latencies = calloc(expected, sizeof *latencies);
  unsigned char* buffer = malloc(kReceiveBytesMax);
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  if (readers == NULL || latencies == NULL || buffer == NULL || epoll < 0) fail("starting");
  for (long i = 0; i < options.connections; ++i) {
    readers[i].fd = join(&options, i < options.stalled);
    struct epoll_event event = {.events = EPOLLIN, .data = {.ptr = &readers[i]}};
    if (i >= options.stalled && epoll_ctl(epoll, EPOLL_CTL_ADD, readers[i].fd, &event) != 0)
      fail("epoll_ctl");
  }
  while (latency_count < expected) {
    struct epoll_event events[kEventsPerTurnMax];
    const int ready = epoll_wait(epoll, events, kEventsPerTurnMax, kSilenceMillisecondsMax);
    if (ready < 0 && errno != EINTR) fail("epoll_wait");
    if (ready == 0) {
      fprintf(stderr, "subscribers: silence; %zu of %zu messages came\n", latency_count, expected);
      return kExitWrongBytes;
    }
    for (int i = 0; i < ready; ++i) {
      struct reader* reader = events[i].data.ptr;
      const ssize_t received = recv(reader->fd, buffer, kReceiveBytesMax, 0);
      if (received < 0 && errno == EAGAIN) continue;
      if (received <= 0) wrong(reader, received == 0 ? "the end came early" : strerror(errno));
      take(reader, buffer, (size_t)received, &options, nanoseconds());
    }
  }
  qsort(latencies, latency_count, sizeof *latencies, ascending);
  printf("{\"messages\": %zu, \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"max_ms\": %.3f}\n",
         latency_count, milliseconds_at(0.5), milliseconds_at(0.99), milliseconds_at(1.0));
  return 0;
}
