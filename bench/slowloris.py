#!/usr/bin/env python3
"""What a server's good clients notice of thousands of bad ones, and how long the bad ones stay.

  good        send a line of 64 B every half second and compare what comes back
  dribbling   send 1 B of a line that never ends every few seconds (--dribble-seconds)
  never       ask for an answer of --answer-bytes and do not read it

First the good clients are alone for a while, then the bad ones come and stay as long as they are let. Reported are the good clients' round trips
in both phases, whether every reply was right, when the last bad client was gone, and how much memory the server had. "Gone" is what the
server's descriptors say: a client that does not read need not notice (the kernel gives up on it without a word). The server
is bench/servers/penstock_lines.cpp; bad clients are removed by the limits it is started with (--first-message-timeout and so on).

Client and server are two processes, so that each has its own descriptors (some 7,200 in each, by default). As root, the trial runs in a network
namespace of its own, where the kernel's buffers are made small (tcp_wmem): else 2,000 sockets that nobody reads would hold gigabytes there.
Needs Python 3.11, nothing else.

Exit status: 0 good clients were unharmed and bad ones gone in time; 1 they were not, or the server grew too much; 2 wrong usage or a missing program.
"""

import argparse
import errno
import heapq
import json
import os
import pathlib
import re
import resource
import select
import socket
import statistics
import struct
import sys
import time

import run

MEBIBYTE = 1 << 20
GOOD_SECONDS = 0.5
SAMPLE_SECONDS = 0.25
REPLY_SECONDS_MAX = 10.0
CONNECTS_AT_A_TIME = 64
SOURCES = 8  # loopback addresses to connect from: a port of one is used once
OWN_DESCRIPTORS = 64
GROWTH_ALLOWANCE = 64 * MEBIBYTE  # besides what queues may hold: connections, pools, the allocator's slack
WMEM = "4096 16384 131072"


def resident_bytes(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^VmRSS:\s+(\d+) kB$", text, re.MULTILINE).group(1)) * 1024


def open_descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


class Client:
    """One connection. `due` is when it wants to act next; None: it waits for the server."""

    kind = "?"

    def __init__(self, number):
        self.number = number
        self.socket = None
        self.connected = False
        self.gone_at = None

    def events(self):
        return select.EPOLLIN

    def on_connected(self, trial, now):
        """Returns when to be called again."""
        raise NotImplementedError

    def on_time(self, trial, now):
        raise NotImplementedError

    def on_readable(self, trial, now):
        """Bad clients learn here that they are gone."""
        if not self.socket.recv(4096):
            trial.gone(self, now, "FIN")


class Good(Client):
    kind = "good"

    def __init__(self, number):
        super().__init__(number)
        self.round = 0
        self.sent_at = None
        self.expected = b""
        self.received = b""

    def on_connected(self, trial, now):
        return now + GOOD_SECONDS * (self.number % 97) / 97  # not all at once

    def on_time(self, trial, now):
        if self.sent_at is not None:
            if now - self.sent_at > REPLY_SECONDS_MAX:
                trial.fail(f"good client {self.number}: no reply within {REPLY_SECONDS_MAX:.0f} s")
                trial.gone(self, now, "silence")
                return None
            return now + GOOD_SECONDS
        self.round += 1
        self.expected = f"{self.number} {self.round} ".encode().ljust(63, b"x") + b"\n"
        self.received = b""
        self.sent_at = time.monotonic()
        self.socket.send(self.expected)
        return now + GOOD_SECONDS

    def on_readable(self, trial, now):
        data = self.socket.recv(4096)
        if not data:
            trial.fail(f"good client {self.number}: FIN")
            trial.gone(self, now, "FIN")
            return
        self.received += data
        if self.sent_at is None or not self.expected.startswith(self.received):
            trial.fail(f"good client {self.number}: wrong bytes")
            trial.gone(self, now, "wrong bytes")
        elif len(self.received) == len(self.expected):
            trial.round_trip(time.monotonic() - self.sent_at)
            self.sent_at = None


class Dribbling(Client):
    kind = "dribbling"

    def on_connected(self, trial, now):
        self.socket.send(b"d")
        return now + trial.arguments.dribble_seconds

    def on_time(self, trial, now):
        self.socket.send(b"d")
        return now + trial.arguments.dribble_seconds


class Never(Client):
    kind = "never"

    def events(self):
        return 0  # only HUP and ERR: it does not read

    def on_connected(self, trial, now):
        self.socket.send(b"*%d\n" % trial.arguments.answer_bytes)
        return None

    def on_readable(self, trial, now):
        """Never asked for."""


class Trial:
    """All clients and one epoll, single-threaded and bounded in time."""

    def __init__(self, arguments, server):
        self.arguments = arguments
        self.pid = server.process.pid
        host, port = server.address.split(":")
        self.address = host, int(port)
        self.epoll = select.epoll()
        self.clients = {}  # by descriptor
        self.timers = []   # (due, sequence, client)
        self.sequence = 0
        self.to_connect = []
        self.connecting = 0
        self.left = {}     # kind: how many are there, or still to come
        self.ends = {}     # kind: how they ended: how many
        self.last_gone = {}
        self.failures = []
        self.failure_count = 0
        self.trips = []
        self.samples = []  # (seconds, resident bytes, descriptors)
        self.begin = time.monotonic()
        self.next_sample = self.begin

    # -- What clients tell --

    def fail(self, text):
        self.failure_count += 1
        if len(self.failures) < 10:
            self.failures.append(text)

    def round_trip(self, seconds):
        self.trips.append(seconds)

    def gone(self, client, now, how):
        if client.gone_at is not None:
            return
        client.gone_at = now
        if client.socket is not None:
            self.clients.pop(client.socket.fileno(), None)
            client.socket.close()
        if not client.connected:
            self.connecting -= 1
        self.left[client.kind] -= 1
        by_end = self.ends.setdefault(client.kind, {})
        by_end[how] = by_end.get(how, 0) + 1
        self.last_gone[client.kind] = now - self.begin

    # -- The loop --

    def add(self, clients):
        for client in clients:
            self.left[client.kind] = self.left.get(client.kind, 0) + 1
            self.to_connect.append(client)

    def schedule(self, client, due):
        if due is not None and client.gone_at is None:
            self.sequence += 1
            heapq.heappush(self.timers, (due, self.sequence, client))

    def connect_some(self, now):
        while self.to_connect and self.connecting < CONNECTS_AT_A_TIME:
            client = self.to_connect.pop()
            client.socket = socket.socket()
            client.socket.setblocking(False)
            if client.kind == "never":
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME_WAIT at the end
            client.socket.bind((f"127.0.1.{1 + client.number % SOURCES}", 0))
            self.connecting += 1
            error = client.socket.connect_ex(self.address)
            if error not in (0, errno.EINPROGRESS):
                self.gone(client, now, os.strerror(error))
                continue
            self.clients[client.socket.fileno()] = client
            self.epoll.register(client.socket, select.EPOLLOUT)

    def act(self, client, now, events):
        try:
            if not client.connected:
                error = client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error:
                    raise OSError(error, os.strerror(error))
                client.connected = True
                self.connecting -= 1
                self.epoll.modify(client.socket, client.events())
                self.schedule(client, client.on_connected(self, now))
            elif events & (select.EPOLLERR | select.EPOLLHUP) and client.kind == "never":
                error = client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                self.gone(client, now, "RST" if error == errno.ECONNRESET else "HUP")
            else:
                client.on_readable(self, now)
        except BlockingIOError:
            pass
        except OSError as error:
            if client.kind == "good":
                self.fail(f"good client {client.number}: {error.strerror}")
            self.gone(client, now, "RST" if error.errno in (errno.ECONNRESET, errno.EPIPE) else error.strerror)

    def fire(self, now):
        while self.timers and self.timers[0][0] <= now:
            _, _, client = heapq.heappop(self.timers)
            if client.gone_at is not None:
                continue
            try:
                self.schedule(client, client.on_time(self, now))
            except OSError as error:
                if client.kind == "good":
                    self.fail(f"good client {client.number}: {error.strerror}")
                self.gone(client, now, "RST" if error.errno in (errno.ECONNRESET, errno.EPIPE) else error.strerror)

    def run_until(self, condition, seconds):
        """Whether the condition came true within so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            if now >= self.next_sample:
                self.samples.append((now - self.begin, resident_bytes(self.pid), open_descriptors(self.pid)))
                self.next_sample = now + SAMPLE_SECONDS
            if condition():
                return True
            if now > deadline:
                return False
            self.connect_some(now)
            self.fire(now)
            for descriptor, events in self.epoll.poll(0.01, 1024):
                client = self.clients.get(descriptor)
                if client is not None:
                    self.act(client, time.monotonic(), events)

    def take_trips(self):
        trips, self.trips = sorted(self.trips), []
        if not trips:
            return {"replies": 0}
        return {"replies": len(trips), "p50_milliseconds": 1e3 * statistics.median(trips),
                "p99_milliseconds": 1e3 * trips[len(trips) * 99 // 100], "max_milliseconds": 1e3 * trips[-1]}

    def close(self):
        for client in list(self.clients.values()):
            client.socket.close()
        self.epoll.close()


def attack(arguments, server):
    trial = Trial(arguments, server)
    try:
        trial.add(Good(number) for number in range(arguments.good))
        if not trial.run_until(lambda: not trial.to_connect and not trial.connecting, 30.0):
            raise run.RunError("the good clients cannot connect")
        trial.run_until(lambda: False, arguments.quiet_seconds)
        resident, descriptors = resident_bytes(trial.pid), open_descriptors(trial.pid)
        cpu = run.process_cpu_seconds(trial.pid)
        quiet = trial.take_trips()
        came = time.monotonic()
        trial.add(Dribbling(number) for number in range(arguments.dribbling))
        trial.add(Never(number) for number in range(arguments.never))

        def bad():
            return trial.samples[-1][2] - descriptors

        all_came = trial.run_until(lambda: not trial.to_connect and not trial.connecting, 60.0)
        connected = time.monotonic() - came
        trial.run_until(lambda: bad() > 0, 5 * SAMPLE_SECONDS)  # the last sample is from before they came
        all_gone = all_came and trial.run_until(lambda: bad() <= 0, arguments.seconds_max)
        attacked = trial.take_trips()
        lasted = time.monotonic() - came
        cpu = (run.process_cpu_seconds(trial.pid) - cpu) / lasted
        still_there = max(0, bad())
        trial.run_until(lambda: False, arguments.quiet_seconds)
        return {"good_alone": quiet, "good_under_attack": attacked, "good_afterwards": trial.take_trips(),
                "good_lost": arguments.good - trial.left["good"], "failures": trial.failures, "failure_count": trial.failure_count,
                "bad_connected_seconds": connected, "bad_left": still_there, "all_gone": all_gone,
                "ends": trial.ends, "last_gone_seconds": {kind: at - (came - trial.begin) for kind, at in trial.last_gone.items()
                                                           if kind != "good"},
                "attack_seconds": lasted, "server_cpu_share": cpu, "resident_before": resident,
                "resident_max": max(size for _, size, _ in trial.samples), "resident_after": trial.samples[-1][1],
                "samples": trial.samples}
    finally:
        trial.close()


# ---- Words ----

def format_trips(name, trips):
    if not trips["replies"]:
        return f"| {name} | 0 | – | – | – |"
    return (f"| {name} | {trips['replies']:,} | {trips['p50_milliseconds']:.1f} | {trips['p99_milliseconds']:.1f} | "
            f"{trips['max_milliseconds']:.1f} |")


def format_report(outcome):
    environment, result = outcome["environment"], outcome["result"]
    gone = f"gone after {result['attack_seconds']:.1f} s" if result["all_gone"] else "not gone"
    parts = ["## Slow and silent clients", "",
             run.wrap(f"{environment['cpu']}, Linux {environment['kernel']}; network: {environment['network']}; {environment['time']}. "
                      f"{environment['good']} good, {environment['dribbling']} dribbling, {environment['never']} never reading; "
                      f"all bad ones connected after {result['bad_connected_seconds']:.1f} s, {gone}; the server used {result['server_cpu_share']:.0%} "
                      "of a core while they were there."), "",
             "| good clients | replies | p50 (ms) | p99 (ms) | slowest (ms) |", "|---|---|---|---|---|",
             format_trips("alone", result["good_alone"]), format_trips("under attack", result["good_under_attack"]),
             format_trips("afterwards", result["good_afterwards"]), "",
             "| bad clients that noticed | ended with | last one after (s) |", "|---|---|---|"]
    for kind, ends in result["ends"].items():
        if kind in result["last_gone_seconds"]:
            how = ", ".join(f"{name} {count:,}" for name, count in ends.items())
            parts.append(f"| {kind} | {how} | {result['last_gone_seconds'][kind]:.1f} |")
    parts += ["", "| server memory (MiB) | before | most | afterwards |", "|---|---|---|---|",
              "| resident | " + " | ".join(f"{result[key] / MEBIBYTE:,.1f}" for key in ("resident_before", "resident_max", "resident_after")) + " |",
              "", f"Good clients lost: {result['good_lost']}; bad ones left: {result['bad_left']}. The server says: "
              f"{'; '.join(outcome['server_said']) or '(nothing)'}.", ""]
    parts += [f"* {failure}" for failure in result["failures"]]
    return "\n".join([*parts, run.format_notes(outcome["notes"])])


def broken_promises(arguments, result):
    if result["good_lost"] or result["failure_count"]:
        yield f"{result['good_lost']} good clients lost, {result['failure_count']} failures"
    if not result["all_gone"]:
        yield f"{result['bad_left']} bad clients left after {result['attack_seconds']:.0f} s"
    allowed = min(arguments.memory_max or sys.maxsize, arguments.never * arguments.output_max) + GROWTH_ALLOWANCE
    grown = result["resident_max"] - result["resident_before"]
    if grown > allowed:
        yield f"the server grew by {grown / MEBIBYTE:.0f} MiB, more than {allowed / MEBIBYTE:.0f}"


def parse_arguments():
    parser = argparse.ArgumentParser(description="Try how a server with limits bears slow and silent clients.")
    parser.add_argument("--good", type=int, default=200, metavar="N")
    parser.add_argument("--dribbling", type=int, default=5000, metavar="N")
    parser.add_argument("--never", type=int, default=2000, metavar="N")
    parser.add_argument("--dribble-seconds", type=float, default=3.0, metavar="S", help="between two bytes of a dribbling client (3)")
    parser.add_argument("--answer-bytes", type=int, default=512 * 1024, metavar="N", help="that a client asks for and never reads (512 KiB)")
    parser.add_argument("--quiet-seconds", type=float, default=3.0, metavar="S", help="good clients alone, before and after (3)")
    parser.add_argument("--seconds-max", type=float, default=90.0, metavar="S", help="the longest the bad ones are given (90)")
    parser.add_argument("--quick", action="store_true", help="50, 300 and 100 clients")
    for name, default, unit in (("--first-message-timeout", 10_000, "ms"), ("--message-timeout", 30_000, "ms"),
                                ("--message-rate-min", 240, "B/s"), ("--message-rate-grace", 5_000, "ms"),
                                ("--write-stall-timeout", 30_000, "ms"), ("--output-max", MEBIBYTE, "bytes"),
                                ("--memory-max", 1536 * MEBIBYTE, "bytes")):
        parser.add_argument(name, type=int, default=default, metavar="N", help=f"of the server, {unit} ({default})")
    parser.add_argument("--backend", default="epoll", metavar="NAME")
    parser.add_argument("--bin", type=pathlib.Path, default=run.ROOT / "build" / "release" / "bin", metavar="DIR", help="where the programs are")
    parser.add_argument("--server-core", type=int, default=0, metavar="CORE")
    parser.add_argument("--netns", choices=["auto", "yes", "no"], default="auto", help="a network namespace of its own (auto: if root)")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="also write slowloris.json and slowloris.md there")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.good, arguments.dribbling, arguments.never = 50, 300, 100
    if min(arguments.good, arguments.dribbling + 1, arguments.never + 1) < 1:
        parser.error("--good must be 1 or more, --dribbling and --never 0 or more")
    arguments.program = arguments.bin.resolve() / "bench" / "penstock_lines"
    if not arguments.program.exists():
        parser.error(f"{arguments.program} is missing: cmake --preset release && cmake --build build/release")
    return arguments


def main():
    arguments = parse_arguments()
    notes = []
    run.raise_descriptor_limit()
    wanted = arguments.good + arguments.dribbling + arguments.never + OWN_DESCRIPTORS
    if wanted > resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
        raise SystemExit(f"slowloris.py: needs {wanted} descriptors; raise the limit with ulimit -n, or lower the numbers")
    network = run.choose_network(arguments.netns, "reno", notes)
    if network == "own namespace":
        pathlib.Path("/proc/sys/net/ipv4/tcp_wmem").write_text(WMEM)
        notes.append(f"In the namespace tcp_wmem is {WMEM}, so that the kernel takes little of what nobody reads.")
    command = [str(arguments.program), "--listen", "127.0.0.1:0", "--backend", arguments.backend]
    for name in ("first-message-timeout", "message-timeout", "message-rate-min", "message-rate-grace", "write-stall-timeout", "output-max",
                 "memory-max"):
        command += [f"--{name}", str(getattr(arguments, name.replace("-", "_")))]
    try:
        with run.RunningServer("penstock_lines", command, arguments.server_core) as server:
            result = attack(arguments, server)
    except run.RunError as failure:
        print(f"slowloris.py: {failure}", file=sys.stderr)
        return 1
    outcome = {"environment": {"cpu": run.cpu_name(), "kernel": os.uname().release, "network": network,
                               "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "command": command[3:],
                               "good": arguments.good, "dribbling": arguments.dribbling, "never": arguments.never},
               "result": result, "server_said": server.said.splitlines(), "notes": notes}
    report = format_report(outcome)
    print(report)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "slowloris.json").write_text(json.dumps(outcome, indent=1) + "\n")
        (arguments.out / "slowloris.md").write_text(report)
    broken = list(broken_promises(arguments, result))
    for promise in broken:
        print(f"slowloris.py: BROKEN: {promise}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
