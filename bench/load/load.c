/* The load generator: many connections, one thread, level-triggered epoll; prints one line of JSON.
 *
 *   echo   keeps DEPTH messages of SIZE bytes under way on every connection and expects each byte
 *          back, in order. Messages that return together are answered together, by one send.
 *   bulk   asks for SIZE bytes at a time (protocol in ../limit/epoll_bulk.c), reads, asks again.
 *   churn  connects, sends one message of SIZE bytes, reads it back, finishes (FIN), reads the
 *          server's end, closes, and connects again; a "message" of the result is a connection. As
 *          the loader ends first, TIME_WAIT is its own; it connects from 64 source addresses in
 *          turn, so that the ports do not run out.
 *
 * Every received byte is compared with the pattern of ../pattern.h; each echo connection starts
 * elsewhere in it, so bytes of another connection are found out too. A run warms up, measures for a
 * time (or, with --messages, counts messages instead), stops sending, waits until all that was sent
 * has come back, finishes, and expects the end of each stream and not one byte more.
 *
 * Exit status: 0 all well; 1 an operating error; 2 a wrong, surplus or missing byte; 64 usage.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "../pattern.h"

enum {
  kEventsPerTurnMax = 512,
  kReceiveBytesMax = 64 * 1024,
  kSendBytesMax = 1024 * 1024,
  kReceivesPerEventMax = 16,
  kConnectionsMax = 100000,
  kDepthMax = 4096,
  kTurnMillisecondsMax = 100,
  kConnectSecondsMax = 5,
  kStallSecondsMax = 10, /* no byte at all for this long: the stream is short */
  kDrainSecondsMax = 60,
  kRequestBytes = 8,
  kChurnSourceAddresses = 64, /* 127.0.1.1 and up */
};

enum exit_status { kExitOperatingError = 1, kExitWrongBytes = 2, kExitUsage = 64 };
enum mode { kEcho, kBulk, kChurn };
enum blocking { kBlocking, kNonblocking };

/* ---- Options ---- */

struct options {
  struct sockaddr_in server;
  enum mode mode;
  uint32_t connections;
  uint32_t depth;
  uint64_t size_bytes;
  uint64_t messages;             /* 0: bounded by time instead */
  uint64_t receive_buffer_bytes; /* 0: the kernel's default */
  double seconds;
  double warmup_seconds;
  pid_t server_process; /* 0: its CPU time is not read */
  bool reports_end;     /* a wrong end of stream becomes part of the result */
};

static const char kUsage[] =
    "usage: load --to IPV4:PORT [--mode echo|bulk|churn] [--connections N] [--size BYTES] [--depth "
    "N]\n"
    "            [--seconds S] [--warmup S] [--messages N] [--receive-buffer BYTES] "
    "[--server-process PID] [--report-end]\n"
    "  --depth           messages under way per connection (echo only; default 1)\n"
    "  --messages        stop after this many messages altogether, without warm-up, instead of "
    "after --seconds\n"
    "  --receive-buffer  SO_RCVBUF, set before connecting (the kernel doubles it)\n"
    "  --server-process  also report the CPU time this process used within the measured window\n"
    "  --report-end      a stream that ends wrongly after the last message is reported, not "
    "fatal\n";

_Noreturn static void fail_usage(const char* option, const char* value) {
  fprintf(stderr, "load: bad %s: %s\n%s", option, value, kUsage);
  exit(kExitUsage);
}

_Noreturn static void fail(const char* what) {
  fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
  exit(kExitOperatingError);
}

static uint64_t parse_count(const char* option, const char* value, uint64_t least, uint64_t most) {
  char* end = NULL;
  errno = 0;
  const unsigned long long number = strtoull(value, &end, 10);
  if (errno != 0 || end == value || *end != '\0' || value[0] == '-' || number < least ||
      number > most)
    fail_usage(option, value);
  return number;
}

static double parse_seconds(const char* option, const char* value) {
  char* end = NULL;
  const double number = strtod(value, &end);
  if (end == value || *end != '\0' || !(number >= 0.0 && number <= 3600.0))
    fail_usage(option, value);
  return number;
}

static struct sockaddr_in parse_address(const char* option, const char* value) {
  struct sockaddr_in address = {.sin_family = AF_INET};
  char host[64];
  const char* colon = strrchr(value, ':');
  if (colon == NULL || (size_t)(colon - value) >= sizeof host) fail_usage(option, value);
  memcpy(host, value, (size_t)(colon - value));
  host[colon - value] = '\0';
  if (inet_pton(AF_INET, host, &address.sin_addr) != 1) fail_usage(option, value);
  address.sin_port = htons((uint16_t)parse_count(option, colon + 1, 1, 65535));
  return address;
}

static enum mode parse_mode(const char* option, const char* value) {
  if (strcmp(value, "echo") == 0) return kEcho;
  if (strcmp(value, "bulk") == 0) return kBulk;
  if (strcmp(value, "churn") == 0) return kChurn;
  fail_usage(option, value);
}

static struct options parse_options(int argument_count, char** arguments) {
  static const struct option kOptions[] = {{"to", required_argument, NULL, 't'},
                                           {"mode", required_argument, NULL, 'm'},
                                           {"connections", required_argument, NULL, 'c'},
                                           {"size", required_argument, NULL, 'b'},
                                           {"depth", required_argument, NULL, 'd'},
                                           {"seconds", required_argument, NULL, 's'},
                                           {"warmup", required_argument, NULL, 'w'},
                                           {"messages", required_argument, NULL, 'n'},
                                           {"receive-buffer", required_argument, NULL, 'r'},
                                           {"server-process", required_argument, NULL, 'p'},
                                           {"report-end", no_argument, NULL, 'e'},
                                           {NULL, 0, NULL, 0}};
  struct options options = {
      .connections = 1, .depth = 1, .size_bytes = 64, .seconds = 2.0, .warmup_seconds = 0.5};
  int letter = 0;
  int index = 0;
  while ((letter = getopt_long(argument_count, arguments, "", kOptions, &index)) != -1) {
    switch (letter) {
      case 't':
        options.server = parse_address("--to", optarg);
        break;
      case 'm':
        options.mode = parse_mode("--mode", optarg);
        break;
      case 'c':
        options.connections = (uint32_t)parse_count("--connections", optarg, 1, kConnectionsMax);
        break;
      case 'b':
        options.size_bytes = parse_count("--size", optarg, 1, UINT64_C(1) << 30);
        break;
      case 'd':
        options.depth = (uint32_t)parse_count("--depth", optarg, 1, kDepthMax);
        break;
      case 's':
        options.seconds = parse_seconds("--seconds", optarg);
        break;
      case 'w':
        options.warmup_seconds = parse_seconds("--warmup", optarg);
        break;
      case 'n':
        options.messages = parse_count("--messages", optarg, 1, UINT64_C(1) << 40);
        break;
      case 'r':
        options.receive_buffer_bytes = parse_count("--receive-buffer", optarg, 1, 1 << 30);
        break;
      case 'p':
        options.server_process = (pid_t)parse_count("--server-process", optarg, 1, 1 << 30);
        break;
      case 'e':
        options.reports_end = true;
        break;
      default:
        fprintf(stderr, "%s", kUsage);
        exit(kExitUsage);
    }
  }
  if (optind != argument_count) fail_usage("argument", arguments[optind]);
  if (options.server.sin_port == 0) fail_usage("--to", "missing");
  if (options.mode != kEcho && options.depth != 1)
    fail_usage("--depth", "bulk and churn have one message under way");
  if (options.mode == kBulk && options.size_bytes > PENSTOCK_BENCH_BULK_PAYLOAD_BYTES)
    fail_usage("--size", "bulk replies end at 10 MiB");
  return options;
}

/* ---- Round-trip times: 64 buckets for each doubling, so at most 1.6 % off ---- */

enum {
  kBucketsPerDoublingLog2 = 6,
  kBuckets = (64 - kBucketsPerDoublingLog2 + 1) << kBucketsPerDoublingLog2
};

struct histogram {
  uint64_t counts[kBuckets];
  uint64_t total;
  uint64_t max;
};

static void histogram_add(struct histogram* histogram, uint64_t value) {
  const unsigned highest_bit = 63U - (unsigned)__builtin_clzll(value | 1U);
  size_t bucket = (size_t)value;
  if (highest_bit > kBucketsPerDoublingLog2) {
    const unsigned shift = highest_bit - kBucketsPerDoublingLog2;
    bucket = ((size_t)shift << kBucketsPerDoublingLog2) + (size_t)(value >> shift);
  }
  ++histogram->counts[bucket];
  ++histogram->total;
  if (value > histogram->max) histogram->max = value;
}

/* The middle of the bucket that holds the given share of all values. */
static double histogram_quantile(const struct histogram* histogram, double share) {
  const uint64_t rank = (uint64_t)(share * (double)histogram->total);
  uint64_t seen = 0;
  for (size_t bucket = 0; bucket < kBuckets; ++bucket) {
    seen += histogram->counts[bucket];
    if (seen <= rank) continue;
    if (bucket < (2U << kBucketsPerDoublingLog2)) return (double)bucket;
    const unsigned shift = (unsigned)(bucket >> kBucketsPerDoublingLog2) - 1U;
    const uint64_t mantissa = bucket - ((size_t)shift << kBucketsPerDoublingLog2);
    const double middle = ((double)mantissa + 0.5) * (double)(UINT64_C(1) << shift);
    return middle < (double)histogram->max ? middle : (double)histogram->max;
  }
  return (double)histogram->max;
}

/* ---- The run ---- */

struct connection {
  int fd;
  bool is_waiting_to_send; /* EPOLLOUT is armed */
  bool is_ending;          /* churn: our FIN is sent, the server's is awaited */
  uint32_t index;
  uint64_t first_position; /* of the pattern */
  uint64_t sent_bytes;     /* echo only */
  uint64_t received_bytes;
  uint64_t messages_started;
  uint64_t messages_finished;
  uint64_t* started_at; /* ring of depth times, by message number */
};

enum phase { kWarmingUp, kMeasuring, kDraining };

static struct options options;
static struct connection* connections;
static unsigned char*
    pattern; /* one period, and what a send or receive that starts at its end still needs */
static unsigned char received_data[kReceiveBytesMax] __attribute__((aligned(64)));
static int epoll;

static enum phase phase;
static uint64_t messages_left; /* that may still be started; UINT64_MAX when time is the bound */
static uint64_t messages_under_way;
static uint64_t messages_finished;
static uint64_t bytes_received;
static uint64_t connections_opened;
static uint64_t wrong_ends;
static struct histogram round_trips;

/* What is read at both ends of the measured window. */
struct snapshot {
  uint64_t time;
  uint64_t messages;
  uint64_t bytes;
  uint64_t server_cpu;
  uint64_t load_cpu;
};
static struct snapshot window_begin;
static struct snapshot window_end;

static uint64_t clock_nanoseconds(clockid_t clock) {
  struct timespec time;
  if (clock_gettime(clock, &time) != 0) fail("clock_gettime");
  return (uint64_t)time.tv_sec * 1000000000U + (uint64_t)time.tv_nsec;
}

static uint64_t now(void) { return clock_nanoseconds(CLOCK_MONOTONIC); }

/* All threads of the server, ended ones too, to the nanosecond. */
static uint64_t server_cpu_nanoseconds(void) {
  clockid_t clock = 0;
  if (options.server_process == 0) return 0;
  errno = clock_getcpuclockid(options.server_process, &clock);
  if (errno != 0) fail("the CPU clock of --server-process");
  return clock_nanoseconds(clock);
}

static struct snapshot take_snapshot(void) {
  return (struct snapshot){.time = now(),
                           .messages = messages_finished,
                           .bytes = bytes_received,
                           .server_cpu = server_cpu_nanoseconds(),
                           .load_cpu = clock_nanoseconds(CLOCK_PROCESS_CPUTIME_ID)};
}

_Noreturn static void fail_stream(const struct connection* connection, const char* what) {
  fprintf(stderr, "load: connection %u: %s after %llu received bytes\n",
          (unsigned)connection->index, what, (unsigned long long)connection->received_bytes);
  exit(kExitWrongBytes);
}

_Noreturn static void fail_wrong_byte(const struct connection* connection,
                                      const unsigned char* expected, size_t bytes) {
  size_t first = 0;
  while (first + 1 < bytes && received_data[first] == expected[first])
    ++first;
  fprintf(stderr, "load: connection %u: wrong byte at %llu: expected 0x%02x, received 0x%02x\n",
          (unsigned)connection->index, (unsigned long long)(connection->received_bytes + first),
          (unsigned)expected[first], (unsigned)received_data[first]);
  exit(kExitWrongBytes);
}

static void set_interest(int operation, struct connection* connection, uint32_t interest) {
  struct epoll_event event = {.events = interest, .data = {.ptr = connection}};
  if (epoll_ctl(epoll, operation, connection->fd, &event) != 0) fail("epoll_ctl");
}

/* Sends what was started and not yet taken; arms EPOLLOUT if the kernel takes only part of it. */
static void send_started(struct connection* connection) {
  const uint64_t goal_bytes = connection->messages_started * options.size_bytes;
  while (connection->sent_bytes < goal_bytes) {
    const uint64_t left_bytes = goal_bytes - connection->sent_bytes;
    const size_t wanted_bytes = left_bytes < kSendBytesMax ? (size_t)left_bytes : kSendBytesMax;
    const uint64_t position =
        (connection->first_position + connection->sent_bytes) % PENSTOCK_BENCH_PATTERN_PERIOD_BYTES;
    const ssize_t sent = send(connection->fd, pattern + position, wanted_bytes, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) fail("send");
    if (sent > 0) connection->sent_bytes += (uint64_t)sent;
    if (sent < 0 || (size_t)sent < wanted_bytes) break;
  }
  const bool must_wait = connection->sent_bytes < goal_bytes;
  if (must_wait == connection->is_waiting_to_send) return;
  connection->is_waiting_to_send = must_wait;
  set_interest(EPOLL_CTL_MOD, connection, must_wait ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

/* Eight bytes always fit: the connection has nothing else in its send buffer. */
static void send_request(struct connection* connection) {
  unsigned char request[kRequestBytes];
  for (int index = 0; index < kRequestBytes; ++index)
    request[index] = (unsigned char)(options.size_bytes >> (56 - 8 * index));
  if (send(connection->fd, request, sizeof request, MSG_NOSIGNAL) != kRequestBytes)
    fail("send of a request");
}

static void start_messages(struct connection* connection, uint64_t count, uint64_t time) {
  if (phase == kDraining) return;
  if (count > messages_left) count = messages_left;
  if (count == 0) return;
  if (messages_left != UINT64_MAX) messages_left -= count;
  messages_under_way += count;
  for (uint64_t started = 0; started < count; ++started)
    connection->started_at[connection->messages_started++ % options.depth] = time;
  if (options.mode == kBulk) {
    send_request(connection);
  } else {
    send_started(connection);
  }
}

static void check_received(const struct connection* connection, size_t bytes) {
  uint64_t position = connection->first_position + connection->received_bytes;
  if (options.mode == kBulk) position = connection->received_bytes % options.size_bytes;
  const unsigned char* expected = pattern + position % PENSTOCK_BENCH_PATTERN_PERIOD_BYTES;
  if (connection->received_bytes + bytes > connection->messages_started * options.size_bytes) {
    fail_stream(connection, "more bytes than were asked for");
  }
  if (memcmp(received_data, expected, bytes) != 0) fail_wrong_byte(connection, expected, bytes);
}

static void open_connection(struct connection* connection, uint32_t index);

/* Churn: the server has ended too. Counts the connection and opens the next. */
static void replace_connection(struct connection* connection) {
  const uint64_t time = now();
  if (phase == kMeasuring) histogram_add(&round_trips, time - connection->started_at[0]);
  ++messages_finished;
  --messages_under_way;
  close(connection->fd);
  connection->fd = -1;
  if (phase == kDraining || messages_left == 0) return;
  open_connection(connection, connection->index);
  if (fcntl(connection->fd, F_SETFL, O_NONBLOCK) != 0) fail("fcntl");
  set_interest(EPOLL_CTL_ADD, connection, EPOLLIN);
  start_messages(connection, 1, time);
}

/* Counts the messages that are now complete and starts as many. */
static void finish_messages(struct connection* connection) {
  const uint64_t complete = connection->received_bytes / options.size_bytes;
  const uint64_t count = complete - connection->messages_finished;
  if (count == 0 || connection->is_ending) return;
  if (options.mode == kChurn) {
    connection->is_ending = true;
    if (shutdown(connection->fd, SHUT_WR) != 0) fail_stream(connection, "ended before our end");
    return;
  }
  const uint64_t time = now();
  for (uint64_t finished = 0; finished < count; ++finished) {
    const uint64_t round_trip =
        time - connection->started_at[connection->messages_finished++ % options.depth];
    if (phase == kMeasuring) histogram_add(&round_trips, round_trip);
  }
  messages_finished += count;
  messages_under_way -= count;
  start_messages(connection, count, time);
}

static void receive(struct connection* connection) {
  for (int receives = 0; receives < kReceivesPerEventMax; ++receives) {
    const ssize_t received = recv(connection->fd, received_data, kReceiveBytesMax, 0);
    if (received < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (received < 0) fail_stream(connection, strerror(errno));
    if (received == 0 && connection->is_ending) {
      replace_connection(connection);
      return;
    }
    if (received == 0) fail_stream(connection, "the stream ended early");
    check_received(connection, (size_t)received);
    connection->received_bytes += (uint64_t)received;
    bytes_received += (uint64_t)received;
    finish_messages(connection);
    if (received < kReceiveBytesMax) return;
  }
}

static void run_turn(void) {
  static struct epoll_event events[kEventsPerTurnMax];
  const int count = epoll_wait(epoll, events, kEventsPerTurnMax, kTurnMillisecondsMax);
  if (count < 0 && errno != EINTR) fail("epoll_wait");
  for (int index = 0; index < count; ++index) {
    struct connection* connection = events[index].data.ptr;
    if ((events[index].events & EPOLLOUT) != 0) send_started(connection);
    if ((events[index].events & ~(uint32_t)EPOLLOUT) != 0) receive(connection);
  }
}

static void fail_if_stalled(uint64_t time) {
  static uint64_t bytes_seen;
  static uint64_t progress_time;
  if (bytes_received != bytes_seen || progress_time == 0) {
    bytes_seen = bytes_received;
    progress_time = time;
  }
  if (time - progress_time < kStallSecondsMax * UINT64_C(1000000000)) return;
  fprintf(stderr, "load: short stream: no byte for %d s with %llu messages under way\n",
          kStallSecondsMax, (unsigned long long)messages_under_way);
  exit(kExitWrongBytes);
}

static void run_messages(void) {
  const bool is_bounded_by_time = options.messages == 0;
  const uint64_t begin = now();
  const uint64_t measure_at =
      begin + (is_bounded_by_time ? (uint64_t)(options.warmup_seconds * 1e9) : 0);
  uint64_t drain_at = UINT64_MAX;
  messages_left = is_bounded_by_time ? UINT64_MAX : options.messages;
  phase = kWarmingUp;
  if (!is_bounded_by_time) {
    phase = kMeasuring;
    window_begin = take_snapshot();
  }
  for (uint32_t index = 0; index < options.connections; ++index)
    start_messages(&connections[index], options.depth, now());

  while (phase != kDraining || messages_under_way > 0) {
    run_turn();
    const uint64_t time = now();
    fail_if_stalled(time);
    if (phase == kWarmingUp && time >= measure_at) {
      window_begin = take_snapshot();
      drain_at = window_begin.time + (uint64_t)(options.seconds * 1e9);
      phase = kMeasuring;
    } else if (phase == kMeasuring &&
               (time >= drain_at || (messages_left == 0 && messages_under_way == 0))) {
      window_end = take_snapshot();
      drain_at = time;
      phase = kDraining;
    } else if (phase == kDraining && time - drain_at > kDrainSecondsMax * UINT64_C(1000000000)) {
      fprintf(stderr, "load: short stream: %llu messages not back %d s after the last was sent\n",
              (unsigned long long)messages_under_way, kDrainSecondsMax);
      exit(kExitWrongBytes);
    }
  }
}

/* ---- Beginning and end ---- */

static void bind_next_source(int fd) {
  const int on = 1;
  const uint32_t host = 1U + (uint32_t)(connections_opened % kChurnSourceAddresses);
  const struct sockaddr_in source = {
      .sin_family = AF_INET, .sin_addr = {htonl((INADDR_LOOPBACK & 0xFF000000U) + 256U + host)}};
  if (setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on) != 0 ||
      bind(fd, (const struct sockaddr*)&source, sizeof source) != 0)
    fail("bind");
}

static void open_connection(struct connection* connection, uint32_t index) {
  uint64_t* started_at = connection->started_at;
  if (started_at == NULL) started_at = calloc(options.depth, sizeof *started_at);
  if (started_at == NULL) fail("calloc");
  *connection = (struct connection){
      .index = index,
      .first_position = options.mode == kBulk ? 0 : (uint64_t)index * 7919U,
      .started_at = started_at,
  };
  connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connection->fd < 0) fail("socket");
  const int on = 1;
  if (setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0)
    fail("TCP_NODELAY");
  if (options.mode == kChurn) bind_next_source(connection->fd);
  ++connections_opened;
  const int buffer_bytes = (int)options.receive_buffer_bytes;
  if (buffer_bytes != 0 &&
      setsockopt(connection->fd, SOL_SOCKET, SO_RCVBUF, &buffer_bytes, sizeof buffer_bytes) != 0)
    fail("SO_RCVBUF");
  const struct timeval connect_time_max = {.tv_sec = kConnectSecondsMax};
  if (setsockopt(connection->fd, SOL_SOCKET, SO_SNDTIMEO, &connect_time_max,
                 sizeof connect_time_max) != 0)
    fail("SO_SNDTIMEO");
  if (connect(connection->fd, (const struct sockaddr*)&options.server, sizeof options.server) != 0)
    fail("connect");
}

static void open_connections(void) {
  connections = calloc(options.connections, sizeof *connections);
  if (connections == NULL) fail("calloc");
  for (uint32_t index = 0; index < options.connections; ++index) {
    open_connection(&connections[index], index);
    set_interest(EPOLL_CTL_ADD, &connections[index], EPOLLIN);
  }
}

static void set_blocking(enum blocking blocking) {
  for (uint32_t index = 0; index < options.connections; ++index) {
    const int flags = fcntl(connections[index].fd, F_GETFL);
    const int changed = blocking == kBlocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK;
    if (flags < 0 || fcntl(connections[index].fd, F_SETFL, changed) != 0) fail("fcntl");
  }
}

static void note_wrong_end(const struct connection* connection, const char* what) {
  if (!options.reports_end) fail_stream(connection, what);
  if (wrong_ends++ == 0)
    fprintf(stderr, "load: connection %u: %s\n", (unsigned)connection->index, what);
}

/* Each stream must now end, with a FIN and nothing before it. Blocking, bounded by a receive
 * timeout per connection. */
static void expect_end_of_streams(void) {
  const struct timeval end_time_max = {.tv_sec = kStallSecondsMax};
  set_blocking(kBlocking);
  for (uint32_t index = 0; index < options.connections; ++index) {
    const int fd = connections[index].fd;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &end_time_max, sizeof end_time_max) != 0)
      fail("SO_RCVTIMEO");
    if (shutdown(fd, SHUT_WR) != 0) note_wrong_end(&connections[index], "ended before our end");
  }
  for (uint32_t index = 0; index < options.connections; ++index) {
    const ssize_t received = recv(connections[index].fd, received_data, sizeof received_data, 0);
    if (received > 0) note_wrong_end(&connections[index], "bytes beyond the last message");
    if (received < 0)
      note_wrong_end(&connections[index], errno == EAGAIN ? "no end of stream" : strerror(errno));
    close(connections[index].fd);
    /* One silent stream costs the whole timeout; the rest of them would tell nothing new. */
    if (wrong_ends != 0) return;
  }
}

static void print_result(void) {
  const double seconds = (double)(window_end.time - window_begin.time) / 1e9;
  const uint64_t messages = window_end.messages - window_begin.messages;
  const double mebibytes = (double)(window_end.bytes - window_begin.bytes) / 1048576.0;
  printf(
      "{\"mode\": \"%s\", \"connections\": %u, \"size_bytes\": %llu, \"depth\": %u, "
      "\"receive_buffer_bytes\": %llu, ",
      options.mode == kBulk    ? "bulk"
      : options.mode == kChurn ? "churn"
                               : "echo",
      (unsigned)options.connections, (unsigned long long)options.size_bytes,
      (unsigned)options.depth, (unsigned long long)options.receive_buffer_bytes);
  printf(
      "\"seconds\": %.6f, \"messages\": %llu, \"mebibytes\": %.6f, \"messages_per_second\": %.1f, "
      "\"mebibytes_per_second\": %.3f, ",
      seconds, (unsigned long long)messages, mebibytes, (double)messages / seconds,
      mebibytes / seconds);
  printf(
      "\"round_trip_microseconds\": {\"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, \"max\": %.3f}, ",
      histogram_quantile(&round_trips, 0.50) / 1e3, histogram_quantile(&round_trips, 0.90) / 1e3,
      histogram_quantile(&round_trips, 0.99) / 1e3, (double)round_trips.max / 1e3);
  if (options.server_process != 0) {
    printf("\"server_cpu_nanoseconds\": %llu, ",
           (unsigned long long)(window_end.server_cpu - window_begin.server_cpu));
  }
  printf("\"ends_well\": %s, ", wrong_ends == 0 ? "true" : "false");
  printf("\"load_cpu_nanoseconds\": %llu, \"messages_in_all\": %llu, \"bytes_in_all\": %llu}\n",
         (unsigned long long)(window_end.load_cpu - window_begin.load_cpu),
         (unsigned long long)messages_finished, (unsigned long long)bytes_received);
}

static void prepare(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) fail("getrlimit");
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) fail("setrlimit");
  const size_t pattern_bytes = PENSTOCK_BENCH_PATTERN_PERIOD_BYTES + kSendBytesMax;
  pattern = malloc(pattern_bytes);
  epoll = epoll_create1(EPOLL_CLOEXEC);
  if (pattern == NULL || epoll < 0) fail("start");
  fill_pattern(pattern, pattern_bytes, 0);
}

int main(int argument_count, char** arguments) {
  options = parse_options(argument_count, arguments);
  prepare();
  open_connections();
  set_blocking(kNonblocking);
  run_messages();
  if (options.mode != kChurn) expect_end_of_streams();
  print_result();
  return 0;
}
