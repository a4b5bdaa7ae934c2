/* One quiet connection, alone and beside neighbours that flood, or that connect and reset without
 * end: what do they cost it? Prints one line of JSON.
 *
 *   quiet   sends 64 bytes, awaits them, rests for a random while, again.
 *   floods  keep 1 MiB under way on each of N connections, in writes of 64 KiB, and read as much.
 *   storm   (--storm, in place of the floods) connects so many times a second, each connection reset
 *           at once.
 *
 * Phases alternate: the quiet one alone, then beside the others, then alone again. Floods must cost less here than in the server, or it would wait for them: they send from a
 * file in memory, never sleep (waking a process on another core can cost the server more than
 * 64 KiB do), and of eight reads one is compared with the pattern of ../pattern.h, the others
 * are counted and dropped in the kernel (load.c compares every byte).
 *
 * Quiet and others are two processes on one core, so the others must not count as the server's
 * delay. Two things keep them out. The quiet process has real-time priority: when its rest is over
 * it takes the core, and the time is read when it has it, right before the send. And the end is not
 * when it has been woken, but when the reply reached its socket: the kernel's own time stamp of the
 * packet (SO_TIMESTAMPNS), which over loopback is set within the server's send, on the server's
 * core. What lies between is the server's alone. The time until the quiet process has read the
 * reply is reported beside it ("woken").
 *
 * Exit status: 0 all well; 1 an operating error; 2 a wrong or missing byte; 64 usage.
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
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../pattern.h"

enum {
  kFloodsMax = 64,
  kUnderWayBytesMax = 1024 * 1024, /* per flood */
  kWriteBytes = 64 * 1024,
  kReadBytesMax = 256 * 1024,
  kReadsPerComparison = 8,
  kMessageBytes = 64,
  kRestMicrosecondsMin = 200,
  kRestMicrosecondsMax = 800,
  kSamplesMax = 1 << 20, /* per kind of phase */
  kStallSecondsMax = 10,
  kTurnMillisecondsMax = 20,
  kStormPauseMicroseconds = 100,
  kConnectMicrosecondsMax = 50 * 1000,
  kStormDebtMicrosecondsMax = 20 * 1000, /* what it is late by beyond this, it leaves out */
  kQuietPriority = 50,
  kFloodPriority = 40,
};

enum exit_status { kExitOperatingError = 1, kExitWrongBytes = 2, kExitUsage = 64 };
enum order { kRest, kFlood, kEnd };

static const char kUsage[] =
    "usage: neighbours --to IPV4:PORT --server-process PID [--floods N | --storm N] [--phases N] "
    "[--seconds S] [--settle S]\n"
    "  --floods   connections that flood (4)\n"
    "  --storm    connects a second, each reset at once, in place of floods\n"
    "  --phases   of each kind (4)\n"
    "  --seconds  measured in each phase (0.25)\n"
    "  --settle   before that, not measured (0.1)\n";

struct options {
  struct sockaddr_in server;
  uint32_t floods;
  uint32_t storm; /* connects a second; 0: floods */
  uint32_t phases;
  double seconds;
  double settle_seconds;
  pid_t server_process;
};

struct flood {
  int fd;
  bool is_waiting_to_send; /* EPOLLOUT is armed */
  uint64_t first_position; /* of the pattern */
  uint64_t sent_bytes;
  uint64_t received_bytes;
  uint64_t reads;
};

/* What the two processes share. */
struct shared {
  _Atomic int order;
  _Atomic int is_flooding; /* 0 once everything has come back */
  _Atomic uint64_t received_bytes;
  _Atomic uint64_t connects;
};

static struct options options = {.floods = 4, .phases = 4, .seconds = 0.25, .settle_seconds = 0.1};
static struct shared* shared;
static struct flood floods[kFloodsMax];
static unsigned char* pattern; /* the contents of pattern_file */
static int pattern_file;
static unsigned char received_data[kReadBytesMax] __attribute__((aligned(64)));

_Noreturn static void fail(const char* what) {
  fprintf(stderr, "neighbours: %s: %s\n", what, strerror(errno));
  exit(kExitOperatingError);
}

_Noreturn static void fail_stream(const char* who, const char* what) {
  fprintf(stderr, "neighbours: %s: %s\n", who, what);
  exit(kExitWrongBytes);
}

_Noreturn static void fail_usage(const char* what) {
  fprintf(stderr, "neighbours: bad %s\n%s", what, kUsage);
  exit(kExitUsage);
}

static uint64_t clock_nanoseconds(clockid_t clock) {
  struct timespec time;
  if (clock_gettime(clock, &time) != 0) fail("clock_gettime");
  return (uint64_t)time.tv_sec * 1000000000U + (uint64_t)time.tv_nsec;
}

/* ---- Options ---- */

static uint64_t parse_count(const char* what, const char* text, uint64_t least, uint64_t most) {
  char* end = NULL;
  const unsigned long long number = strtoull(text, &end, 10);
  if (end == text || *end != '\0' || text[0] == '-' || number < least || number > most)
    fail_usage(what);
  return number;
}

static double parse_seconds(const char* what, const char* text) {
  char* end = NULL;
  const double number = strtod(text, &end);
  if (end == text || *end != '\0' || !(number > 0.0 && number <= 60.0)) fail_usage(what);
  return number;
}

static struct sockaddr_in parse_address(const char* text) {
  struct sockaddr_in address = {.sin_family = AF_INET};
  char host[64];
  const char* colon = strrchr(text, ':');
  if (colon == NULL || (size_t)(colon - text) >= sizeof host) fail_usage("--to");
  memcpy(host, text, (size_t)(colon - text));
  host[colon - text] = '\0';
  if (inet_pton(AF_INET, host, &address.sin_addr) != 1) fail_usage("--to");
  address.sin_port = htons((uint16_t)parse_count("--to", colon + 1, 1, 65535));
  return address;
}

static void parse_options(int argument_count, char** arguments) {
  static const struct option kOptions[] = {
      {"to", required_argument, NULL, 't'},     {"server-process", required_argument, NULL, 'p'},
      {"floods", required_argument, NULL, 'f'}, {"storm", required_argument, NULL, 'c'},
      {"phases", required_argument, NULL, 'n'}, {"seconds", required_argument, NULL, 's'},
      {"settle", required_argument, NULL, 'w'}, {NULL, 0, NULL, 0}};
  int letter = 0;
  while ((letter = getopt_long(argument_count, arguments, "", kOptions, NULL)) != -1) {
    switch (letter) {
      case 't':
        options.server = parse_address(optarg);
        break;
      case 'p':
        options.server_process = (pid_t)parse_count("--server-process", optarg, 1, 1 << 30);
        break;
      case 'f':
        options.floods = (uint32_t)parse_count("--floods", optarg, 1, kFloodsMax);
        break;
      case 'c':
        options.storm = (uint32_t)parse_count("--storm", optarg, 1, 1000 * 1000);
        break;
      case 'n':
        options.phases = (uint32_t)parse_count("--phases", optarg, 1, 1000);
        break;
      case 's':
        options.seconds = parse_seconds("--seconds", optarg);
        break;
      case 'w':
        options.settle_seconds = parse_seconds("--settle", optarg);
        break;
      default:
        fail_usage("option");
    }
  }
  if (optind != argument_count) fail_usage("argument");
  if (options.server.sin_port == 0) fail_usage("--to");
  if (options.server_process == 0) fail_usage("--server-process");
}

/* Above other processes, as far as that is allowed. */
static bool become_real_time(int level) {
  const struct sched_param priority = {.sched_priority = level};
  return sched_setscheduler(0, SCHED_FIFO, &priority) == 0;
}

static int connect_to_server(void) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("socket");
  const int on = 1;
  if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0) fail("TCP_NODELAY");
  if (connect(fd, (const struct sockaddr*)&options.server, sizeof options.server) != 0)
    fail("connect");
  return fd;
}

/* ---- The floods: a process of their own ---- */

static const unsigned char* expected_at(const struct flood* flood, uint64_t bytes) {
  return pattern + (flood->first_position + bytes) % PENSTOCK_BENCH_PATTERN_PERIOD_BYTES;
}

static void set_interest(int epoll, int operation, struct flood* flood, uint32_t interest) {
  struct epoll_event event = {.events = interest, .data = {.ptr = flood}};
  if (epoll_ctl(epoll, operation, flood->fd, &event) != 0) fail("epoll_ctl");
}

static void send_more(int epoll, struct flood* flood) {
  bool must_wait = false;
  while (!must_wait && atomic_load(&shared->order) == kFlood &&
         flood->sent_bytes - flood->received_bytes + kWriteBytes <= kUnderWayBytesMax) {
    off_t position =
        (off_t)((flood->first_position + flood->sent_bytes) % PENSTOCK_BENCH_PATTERN_PERIOD_BYTES);
    const ssize_t sent = sendfile(flood->fd, pattern_file, &position, kWriteBytes);
    if (sent < 0 && errno != EAGAIN) fail("sendfile");
    if (sent > 0) flood->sent_bytes += (uint64_t)sent;
    must_wait = sent < kWriteBytes;
  }
  if (must_wait == flood->is_waiting_to_send) return;
  flood->is_waiting_to_send = must_wait;
  set_interest(epoll, EPOLL_CTL_MOD, flood, must_wait ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

static void receive(struct flood* flood) {
  const bool is_compared = flood->reads++ % kReadsPerComparison == 0;
  const ssize_t received =
      recv(flood->fd, received_data, sizeof received_data, is_compared ? 0 : MSG_TRUNC);
  if (received < 0 && errno == EAGAIN) return;
  if (received <= 0) fail_stream("a flood", received == 0 ? "the stream ended" : strerror(errno));
  if (flood->received_bytes + (uint64_t)received > flood->sent_bytes)
    fail_stream("a flood", "more bytes than were sent");
  if (is_compared &&
      memcmp(received_data, expected_at(flood, flood->received_bytes), (size_t)received) != 0)
    fail_stream("a flood", "a wrong byte");
  flood->received_bytes += (uint64_t)received;
  atomic_fetch_add(&shared->received_bytes, (uint64_t)received);
}

static bool all_is_back(void) {
  for (uint32_t index = 0; index < options.floods; ++index)
    if (floods[index].received_bytes != floods[index].sent_bytes) return false;
  return true;
}

_Noreturn static void run_floods(void) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  become_real_time(kFloodPriority);
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  if (epoll < 0) fail("epoll_create1");
  for (uint32_t index = 0; index < options.floods; ++index) {
    struct flood* flood = &floods[index];
    flood->first_position = (uint64_t)index * 7919U;
    flood->fd = connect_to_server();
    if (fcntl(flood->fd, F_SETFL, O_NONBLOCK) != 0) fail("fcntl");
    set_interest(epoll, EPOLL_CTL_ADD, flood, EPOLLIN);
  }
  uint64_t progress_time = clock_nanoseconds(CLOCK_MONOTONIC);
  for (;;) {
    const int order = atomic_load(&shared->order);
    const bool idle = all_is_back();
    if (order == kFlood && !atomic_load(&shared->is_flooding)) {
      atomic_store(&shared->is_flooding, 1);
      for (uint32_t index = 0; index < options.floods; ++index)
        send_more(epoll, &floods[index]);
    } else if (order != kFlood && idle) {
      atomic_store(&shared->is_flooding, 0);
      if (order == kEnd) exit(0);
    }
    struct epoll_event events[kFloodsMax];
    const int count =
        epoll_wait(epoll, events, kFloodsMax, order == kFlood ? 0 : kTurnMillisecondsMax);
    if (count < 0 && errno != EINTR) fail("epoll_wait");
    for (int index = 0; index < count; ++index) {
      if ((events[index].events & ~(uint32_t)EPOLLOUT) != 0) receive(events[index].data.ptr);
      send_more(epoll, events[index].data.ptr);
    }
    const uint64_t time = clock_nanoseconds(CLOCK_MONOTONIC);
    if (count > 0 || idle) progress_time = time;
    if (time - progress_time > kStallSecondsMax * UINT64_C(1000000000))
      fail_stream("floods", "no byte for 10 s");
  }
}

/* ---- The storm: likewise ---- */

static void connect_and_reset(void) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("socket");
  const struct timeval patience = {.tv_usec = kConnectMicrosecondsMax};
  if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) != 0) fail("SO_SNDTIMEO");
  const struct linger at_once = {.l_onoff = 1};
  if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) != 0) fail("SO_LINGER");
  /* Over loopback this does not sleep, unless the backlog is full. */
  if (connect(fd, (const struct sockaddr*)&options.server, sizeof options.server) == 0)
    atomic_fetch_add(&shared->connects, 1);
  else if (errno != EINPROGRESS)
    fail("connect");
  close(fd);
}

_Noreturn static void run_storm(void) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  become_real_time(kFloodPriority);
  const uint64_t interval = UINT64_C(1000000000) / options.storm;
  uint64_t due = 0;
  for (;;) {
    const int order = atomic_load(&shared->order);
    const uint64_t time = clock_nanoseconds(CLOCK_MONOTONIC);
    if (order == kEnd) exit(0);
    if (order != kFlood) {
      atomic_store(&shared->is_flooding, 0);
    } else {
      const bool begins = atomic_exchange(&shared->is_flooding, 1) == 0;
      if (begins || due + kStormDebtMicrosecondsMax * UINT64_C(1000) < time) due = time;
      for (; due <= time; due += interval)
        connect_and_reset();
    }
    const struct timespec pause = {.tv_nsec = kStormPauseMicroseconds * 1000};
    clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
  }
}

/* ---- The quiet connection ---- */

struct samples {
  uint64_t* answered; /* nanoseconds until the reply was at the client's socket */
  uint64_t* woken;    /* and until the client had read it */
  size_t count;
  uint64_t nanoseconds; /* measured, all phases */
  uint64_t flood_bytes;
  uint64_t connects;
  uint64_t server_cpu;
};

static int quiet;
static uint64_t quiet_bytes;
static uint64_t random_state = 1;

/* xorshift64: the same rests in every run. */
static uint64_t next_random(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

static void rest(void) {
  const uint64_t range = kRestMicrosecondsMax - kRestMicrosecondsMin;
  const uint64_t microseconds = kRestMicrosecondsMin + next_random() % range;
  const struct timespec time = {.tv_nsec = (long)(microseconds * 1000)};
  clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
}

/* Receives at most `bytes`; answers the kernel's time stamp of the last packet, or 0. */
static uint64_t receive_stamped(unsigned char* data, size_t bytes, size_t* received_bytes) {
  union {
    struct cmsghdr align;
    char room[256];
  } control;
  struct iovec piece = {.iov_base = data, .iov_len = bytes};
  struct msghdr message = {.msg_iov = &piece,
                           .msg_iovlen = 1,
                           .msg_control = &control,
                           .msg_controllen = sizeof control};
  const ssize_t received = recvmsg(quiet, &message, 0);
  if (received < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
    fail_stream("the quiet one", "no answer within 10 s");
  if (received <= 0) fail_stream("the quiet one", "the stream ended");
  *received_bytes = (size_t)received;
  for (struct cmsghdr* part = CMSG_FIRSTHDR(&message); part != NULL;
       part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_TIMESTAMPNS) continue;
    struct timespec stamp;
    memcpy(&stamp, CMSG_DATA(part), sizeof stamp);
    return (uint64_t)stamp.tv_sec * 1000000000U + (uint64_t)stamp.tv_nsec;
  }
  return 0; /* the kernel begins to stamp a moment after it was asked to */
}

static void exchange(struct samples* samples) {
  const unsigned char* sent = pattern + quiet_bytes % PENSTOCK_BENCH_PATTERN_PERIOD_BYTES;
  unsigned char data[kMessageBytes];
  const uint64_t begin = clock_nanoseconds(CLOCK_REALTIME);
  if (send(quiet, sent, kMessageBytes, MSG_NOSIGNAL) != kMessageBytes) fail("send");
  uint64_t stamp = 0;
  for (size_t had = 0, more = 0; had < kMessageBytes; had += more)
    stamp = receive_stamped(data + had, kMessageBytes - had, &more);
  const uint64_t end = clock_nanoseconds(CLOCK_REALTIME);
  if (memcmp(data, sent, kMessageBytes) != 0) fail_stream("the quiet one", "a wrong byte");
  quiet_bytes += kMessageBytes;
  /* Without a stamp, or with a clock that was set meanwhile, it does not count. */
  if (samples == NULL || samples->count == kSamplesMax || stamp < begin || end < stamp) return;
  samples->answered[samples->count] = stamp - begin;
  samples->woken[samples->count++] = end - begin;
}

static uint64_t server_cpu_nanoseconds(void) {
  clockid_t clock = 0;
  errno = clock_getcpuclockid(options.server_process, &clock);
  if (errno != 0) fail("the CPU clock of --server-process");
  return clock_nanoseconds(clock);
}

static void exchange_for(double seconds, struct samples* samples) {
  const uint64_t goal = clock_nanoseconds(CLOCK_MONOTONIC) + (uint64_t)(seconds * 1e9);
  while (clock_nanoseconds(CLOCK_MONOTONIC) < goal) {
    rest();
    exchange(samples);
  }
}

static void give_order(enum order order) {
  atomic_store(&shared->order, order);
  const int goal = order == kFlood ? 1 : 0;
  const uint64_t begin = clock_nanoseconds(CLOCK_MONOTONIC);
  while (atomic_load(&shared->is_flooding) != goal) {
    if (waitpid(-1, NULL, WNOHANG) != 0) {
      errno = ECHILD;
      fail("the floods have ended");
    }
    if (clock_nanoseconds(CLOCK_MONOTONIC) - begin > 2 * kStallSecondsMax * UINT64_C(1000000000))
      fail_stream("floods", "not all came back");
    exchange_for(1e-3, NULL);
  }
}

static void run_phase(enum order order, struct samples* samples) {
  give_order(order);
  exchange_for(options.settle_seconds, NULL);
  const uint64_t begin = clock_nanoseconds(CLOCK_MONOTONIC);
  const uint64_t bytes = atomic_load(&shared->received_bytes);
  const uint64_t connects = atomic_load(&shared->connects);
  const uint64_t cpu = server_cpu_nanoseconds();
  exchange_for(options.seconds, samples);
  samples->server_cpu += server_cpu_nanoseconds() - cpu;
  samples->flood_bytes += atomic_load(&shared->received_bytes) - bytes;
  samples->connects += atomic_load(&shared->connects) - connects;
  samples->nanoseconds += clock_nanoseconds(CLOCK_MONOTONIC) - begin;
}

static struct samples make_samples(void) {
  struct samples samples = {.answered = calloc(kSamplesMax, sizeof(uint64_t)),
                            .woken = calloc(kSamplesMax, sizeof(uint64_t))};
  if (samples.answered == NULL || samples.woken == NULL) fail("calloc");
  return samples;
}

static int compare(const void* left, const void* right) {
  const uint64_t a = *(const uint64_t*)left;
  const uint64_t b = *(const uint64_t*)right;
  return a < b ? -1 : a > b;
}

static void print_times(const char* name, uint64_t* times, size_t count) {
  qsort(times, count, sizeof *times, compare);
  printf("\"%s_microseconds\": {\"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, \"max\": %.3f}, ",
         name, (double)times[count / 2] / 1e3, (double)times[count * 9 / 10] / 1e3,
         (double)times[count * 99 / 100] / 1e3, (double)times[count - 1] / 1e3);
}

static void print_samples(const char* name, struct samples* samples) {
  if (samples->count == 0) fail_stream("the quiet one", "not one sample");
  printf("\"%s\": {", name);
  print_times("answered", samples->answered, samples->count);
  print_times("woken", samples->woken, samples->count);
  printf(
      "\"samples\": %zu, \"seconds\": %.6f, \"mebibytes\": %.3f, \"mebibytes_per_second\": %.3f, "
      "\"connects_per_second\": %.1f, \"server_core_share\": %.4f}",
      samples->count, (double)samples->nanoseconds / 1e9, (double)samples->flood_bytes / 1048576.0,
      (double)samples->flood_bytes / 1048576.0 * 1e9 / (double)samples->nanoseconds,
      (double)samples->connects * 1e9 / (double)samples->nanoseconds,
      (double)samples->server_cpu / (double)samples->nanoseconds);
}

static void open_quiet(void) {
  quiet = connect_to_server();
  const int on = 1;
  if (setsockopt(quiet, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on) != 0) fail("SO_TIMESTAMPNS");
  const struct timeval limit = {.tv_sec = kStallSecondsMax};
  if (setsockopt(quiet, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) != 0) fail("SO_RCVTIMEO");
}

int main(int argument_count, char** arguments) {
  parse_options(argument_count, arguments);
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  const size_t pattern_bytes = PENSTOCK_BENCH_PATTERN_PERIOD_BYTES + kReadBytesMax;
  pattern_file = memfd_create("pattern", MFD_CLOEXEC);
  if (pattern_file < 0 || ftruncate(pattern_file, (off_t)pattern_bytes) != 0) fail("memfd_create");
  pattern = mmap(NULL, pattern_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, pattern_file, 0);
  if (shared == MAP_FAILED || pattern == MAP_FAILED) fail("mmap");
  fill_pattern(pattern, pattern_bytes, 0);

  open_quiet();
  const pid_t child = fork();
  if (child < 0) fail("fork");
  if (child == 0) {
    if (options.storm > 0) run_storm();
    run_floods();
  }
  const bool is_real_time = become_real_time(kQuietPriority);

  struct samples solo = make_samples();
  struct samples beside = make_samples();
  for (uint32_t phase = 0; phase < options.phases; ++phase) {
    run_phase(kRest, &solo);
    run_phase(kFlood, &beside);
  }
  give_order(kRest);
  atomic_store(&shared->order, kEnd);
  int status = 0;
  if (waitpid(child, &status, 0) != child) fail("waitpid");
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) return kExitWrongBytes;

  printf("{\"floods\": %u, \"real_time\": %s, ", (unsigned)options.floods,
         is_real_time ? "true" : "false");
  print_samples("solo", &solo);
  printf(", ");
  print_samples("beside", &beside);
  printf("}\n");
  return 0;
}
