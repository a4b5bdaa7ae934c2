#!/usr/bin/env python3
"""Measures echo and bulk servers, Penstock's and those on other libraries, against the bare epoll reference.

First with load and server on two cores, then with both on one. Per scenario it runs interleaved rounds (A B C, A B C, ...), a fresh server process each time, and reports the server's CPU time per message
(per KiB for bulk) as a ratio to the reference of the same round. README.md says how to read that. Needs Python 3.11, nothing else; the plots need
matplotlib and are left out without it.

Exit status: 0 all measured; 1 a wrong byte, a failed server or load generator; 2 wrong usage or a missing program. A server on another library
that fails is reported in its row, and the rest is measured all the same.
"""

import argparse
import copy
import ctypes
import dataclasses
import fcntl
import json
import os
import pathlib
import platform
import random
import re
import resource
import select
import shlex
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import textwrap
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
REFERENCE = "bare-epoll"
START_SECONDS_MAX = 10.0
STOP_SECONDS_MAX = 10.0
LOAD_EXTRA_SECONDS_MAX = 90.0  # connecting, draining and ending, on top of warm-up and measured time
OTHER_CPU_SHARE_NOTED = 0.02  # of one core, during one measurement
BOOTSTRAP_RESAMPLES = 4000
CLONE_NEWNET = 0x40000000


class RunError(Exception):
    """A measurement that must not count: a wrong byte, a server that failed."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    mode: str
    connections: int
    size_bytes: int
    depth: int = 1
    receive_buffer_bytes: int = 0
    by_default: bool = True
    label: str = ""  # the head of its column in the overview

    @property
    def unit(self):
        return {"echo": "message", "bulk": "KiB", "churn": "connection"}[self.mode]


SCENARIOS = [
    Scenario("echo-64x100", "echo, 64 B × 100 connections", "echo", 100, 64, label="64 B × 100"),
    Scenario("echo-64x100-depth16", "echo, 64 B × 100 connections, depth 16", "echo", 100, 64, depth=16, label="depth 16"),
    Scenario("echo-16Kx100", "echo, 16 KiB × 100 connections", "echo", 100, 16 * 1024, label="16 KiB × 100"),
    Scenario("bulk-10Mx20", "bulk, 10 MiB to 20 readers with 128 KiB receive buffers", "bulk", 20, 10 << 20,
             receive_buffer_bytes=128 * 1024, label="bulk"),
    Scenario("churn-64x50", "churn: connect, echo 64 B, finish; 50 at a time", "churn", 50, 64, label="churn"),
    Scenario("echo-64x1000", "echo, 64 B × 1,000 connections", "echo", 1000, 64, by_default=False, label="64 B × 1,000"),
]
TWO_CORES, ONE_CORE = "two cores", "one core"


@dataclasses.dataclass(frozen=True)
class Server:
    name: str
    commands: dict  # mode -> list of arguments; a server without a command for a mode is left out of its scenarios
    is_peer: bool = False  # on another library: what it does wrong is reported, and does not end the run

    def command(self, mode):
        """An echo server serves churn too. None: it has no program for this."""
        return self.commands.get("echo" if mode == "churn" else mode)


# ---- The place to measure in ----

def enter_network_namespace():
    """Moves this process, and so its children, into a network of its own. Raises OSError where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET): " + os.strerror(ctypes.get_errno()))
    get_flags, set_flags, is_up = 0x8913, 0x8914, 1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, get_flags, struct.pack("16sH14x", b"lo", 0))
        flags = struct.unpack("16sH14x", answer)[1]
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sH14x", b"lo", flags | is_up))


def choose_network(option, congestion_control, notes):
    """Returns what to print about the network that is measured in."""
    if option == "no":
        notes.append("Measured in the machine's own network (--netns no).")
    elif option == "auto" and os.geteuid() != 0:
        notes.append("Not root: measured in the machine's own network, with its congestion control.")
    else:
        try:
            enter_network_namespace()
            pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text(congestion_control)
            return "own namespace"
        except OSError as error:
            if option == "yes":
                raise SystemExit(f"run.py: no network namespace with {congestion_control}: {error}")
            notes.append(f"No network namespace with {congestion_control} ({error}): measured in the network at hand.")
    if read_setting("net/ipv4/tcp_congestion_control") == "bbr":
        notes.append("The congestion control is bbr, which about halves bulk throughput over loopback.")
    return "the machine's own"


def read_setting(name):
    try:
        return " ".join(pathlib.Path("/proc/sys", name).read_text().split())
    except OSError:
        return "unknown"


def cpu_name():
    names = re.findall(r"^model name\s*:\s*(.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return names[0] if names else platform.machine()


def describe_environment(network, arguments):
    return {
        "kernel": platform.release(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "network": network,
        "congestion_control": read_setting("net/ipv4/tcp_congestion_control"),
        "tcp_wmem": read_setting("net/ipv4/tcp_wmem"),
        "tcp_rmem": read_setting("net/ipv4/tcp_rmem"),
        "server_core": arguments.server_core,
        "load_core": arguments.load_core,
        "placements": arguments.placements,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "warmup_seconds": arguments.warmup,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def raise_descriptor_limit():
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


# ---- CPU time ----

def process_cpu_seconds(pid):
    """All threads of a process, ended ones too, to the nanosecond: what clock_getcpuclockid(3) names."""
    return time.clock_gettime((~pid << 3) | 2)


def cores_busy_seconds(cores):
    """What all processes used of these cores, and what the hypervisor took; from /proc/stat, in ticks (10 ms)."""
    ticks_per_second = os.sysconf("SC_CLK_TCK")
    busy = stolen = 0.0
    for line in pathlib.Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in {f"cpu{core}" for core in cores}:
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) / ticks_per_second for field in fields[:8])
            busy += user + nice + system + irq + softirq
            stolen += steal
    return busy, stolen


# ---- One measurement ----

class RunningServer:
    """A server process pinned to one core; leaving the block ends it with SIGTERM and insists on status 0."""

    def __init__(self, name, command, core, descriptors_max=None):
        def prepare():
            os.sched_setaffinity(0, {core})
            if descriptors_max is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors_max, descriptors_max))

        self.name = name
        self.said = ""
        self.errors = tempfile.TemporaryFile()  # not a pipe: a server that logs much must not block on us
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.errors,
                                        preexec_fn=prepare)
        try:
            self.address = self._wait_for_address()
        except BaseException:
            self._kill()
            raise

    def _wait_for_address(self):
        deadline = time.monotonic() + START_SECONDS_MAX
        line = b""
        descriptor = self.process.stdout.fileno()
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            byte = os.read(descriptor, 1) if ready else b""
            if not byte:
                self._kill()
                why = "ended" if ready else f"said nothing for {START_SECONDS_MAX:.0f} s"
                raise RunError(f"{self.name} {why} before it listened: {self._last_errors()}")
            line += byte
        match = re.match(r"listening on (127\.0\.0\.1:\d+) \(backend .+\)$", line.decode(errors="replace").rstrip())
        if not match:
            raise RunError(f"{self.name}: the first line is not 'listening on 127.0.0.1:PORT (backend NAME)' but {line!r}")
        return match.group(1)

    def _last_errors(self):
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace").strip()[-2000:] or "(nothing on stderr)"

    def _kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        crashed = self.process.poll() is not None
        if not crashed:
            self.process.send_signal(signal.SIGTERM)
        try:
            output, _ = self.process.communicate(timeout=STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._kill()
            raise RunError(f"{self.name} did not end within {STOP_SECONDS_MAX:.0f} s of SIGTERM") from value
        self.said = output.decode(errors="replace").strip()
        status = self.process.returncode
        if crashed or status != 0:
            when = "during the measurement" if crashed else "on SIGTERM"
            what = f"{self.name} ended {when} with status {status}: {self._last_errors()}"
            raise RunError(what if value is None else f"{what}; {value}") from value


def load_command(arguments, scenario, server, is_peer):
    command = [str(arguments.load), "--to", server.address, "--mode", scenario.mode, "--connections", str(scenario.connections),
               "--size", str(scenario.size_bytes), "--depth", str(scenario.depth), "--seconds", str(arguments.seconds),
               "--warmup", str(arguments.warmup), "--server-process", str(server.process.pid)]
    if is_peer:
        command.append("--report-end")
    if scenario.receive_buffer_bytes:
        command += ["--receive-buffer", str(scenario.receive_buffer_bytes)]
    return command


def measure(arguments, scenario, measured_server):
    """One server, one scenario, one round."""
    server_name, command = measured_server.name, measured_server.command(scenario.mode)
    cores = {arguments.server_core, arguments.load_core}
    with RunningServer(server_name, command, arguments.server_core) as server:
        children_before = resource.getrusage(resource.RUSAGE_CHILDREN)
        own_before, server_before = time.process_time(), process_cpu_seconds(server.process.pid)
        busy_before, stolen_before = cores_busy_seconds(cores)
        begin = time.monotonic()
        try:
            load = subprocess.run(load_command(arguments, scenario, server, measured_server.is_peer), stdin=subprocess.DEVNULL, capture_output=True,
                                  timeout=arguments.seconds + arguments.warmup + LOAD_EXTRA_SECONDS_MAX,
                                  preexec_fn=lambda: os.sched_setaffinity(0, {arguments.load_core}))
        except subprocess.TimeoutExpired:
            raise RunError(f"{scenario.name}, {server_name}: the load generator did not end") from None
        if load.returncode != 0:
            raise RunError(f"{scenario.name}, {server_name}: {load.stderr.decode(errors='replace').strip()} (status {load.returncode})")
        elapsed = time.monotonic() - begin
        busy, stolen = (after - before for after, before in zip(cores_busy_seconds(cores), (busy_before, stolen_before)))
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        own = time.process_time() - own_before
        load_used = (children.ru_utime + children.ru_stime) - (children_before.ru_utime + children_before.ru_stime)
        server_used = process_cpu_seconds(server.process.pid) - server_before

    result = json.loads(load.stdout)
    units = result["mebibytes"] * 1024.0 if scenario.mode == "bulk" else result["messages"]
    if units <= 0:
        raise RunError(f"{scenario.name}, {server_name}: nothing came back within the measured time; give it more --seconds")
    result["server_cpu_nanoseconds_per_unit"] = result["server_cpu_nanoseconds"] / units
    result["server_core_share"] = result["server_cpu_nanoseconds"] / 1e9 / result["seconds"]
    result["load_core_share"] = result["load_cpu_nanoseconds"] / 1e9 / result["seconds"]
    result["other_cpu_share"] = max(0.0, busy - load_used - server_used - own) / elapsed
    result["stolen_share"] = stolen / elapsed
    result["server_said"] = server.said
    return result


# ---- Statistics ----

def bootstrap_interval(values):
    """The 95 % percentile interval of the median; the same input gives the same answer."""
    if len(values) < 2:
        return values[0], values[0]
    source = random.Random(1)
    medians = sorted(statistics.median(source.choices(values, k=len(values))) for _ in range(BOOTSTRAP_RESAMPLES))
    return medians[int(0.025 * BOOTSTRAP_RESAMPLES)], medians[int(0.975 * BOOTSTRAP_RESAMPLES) - 1]


def summarise(scenario, rounds):
    """rounds: a list of {server name: result}. Returns {server name: summary}; a server that failed in any round has none."""
    summary = {}
    for name in rounds[-1]:
        results = [results_of_round[name] for results_of_round in rounds]
        costs = [result["server_cpu_nanoseconds_per_unit"] for result in results]
        ratios = [cost / results_of_round[REFERENCE]["server_cpu_nanoseconds_per_unit"] for cost, results_of_round in zip(costs, rounds)]
        low, high = bootstrap_interval(ratios)

        def median_of(key, results=results):
            return statistics.median(result[key] for result in results)

        summary[name] = {
            "ratio_median": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
            "ratio_interval_95": [low, high], "ratios": ratios,
            "server_cpu_nanoseconds_per_unit": statistics.median(costs), "unit": scenario.unit,
            "messages_per_second": median_of("messages_per_second"), "mebibytes_per_second": median_of("mebibytes_per_second"),
            "server_core_share": median_of("server_core_share"), "load_core_share": median_of("load_core_share"),
            "round_trip_microseconds": {key: statistics.median(result["round_trip_microseconds"][key] for result in results)
                                        for key in ("p50", "p90", "p99", "max")},
            "ends_well": all(result["ends_well"] for result in results),
        }
    return summary


def disturbances(scenario, placement, rounds):
    results = [result for results_of_round in rounds for result in results_of_round.values()]
    for key, who in (("other_cpu_share", "other processes"), ("stolen_share", "the hypervisor")):
        shares = [result[key] for result in results if result[key] > OTHER_CPU_SHARE_NOTED]
        if shares:
            yield (f"{scenario.name}, {placement}: {who} took more than {100 * OTHER_CPU_SHARE_NOTED:.0f} % of a core in {len(shares)} of {len(results)} "
                   f"measurements, up to {100 * max(shares):.0f} %.")


# ---- Words ----

def wrap(text, indent=""):
    """Prose of at most 120 characters a line; tables keep theirs."""
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def format_cost(nanoseconds):
    return f"{nanoseconds / 1000:.3f} µs" if nanoseconds >= 1000 else f"{nanoseconds:.1f} ns"


def format_time(microseconds):
    return f"{microseconds / 1000:.1f} ms" if microseconds >= 10000 else f"{microseconds:.0f} µs"


def rate_title(scenario):
    return {"echo": "messages/s", "bulk": "MiB/s", "churn": "connections/s"}[scenario.mode]


def format_name(name, row):
    return name if row["ends_well"] else f"{name} (ends the stream wrongly)"


def format_table(scenario, placement, summary, failures):
    lines = [f"### {scenario.title}; {placement}", "",
             f"| server | ratio (median) | min–max | 95 % interval | CPU per {scenario.unit} | {rate_title(scenario)} | p50 | p99 "
             "| server core | load core |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    for name, row in summary.items():
        rate = row["mebibytes_per_second"] if scenario.mode == "bulk" else row["messages_per_second"]
        low, high = row["ratio_interval_95"]
        spread = "—" if name == REFERENCE else f"{row['ratio_min']:.3f}–{row['ratio_max']:.3f}"
        interval = "—" if name == REFERENCE else f"{low:.3f}–{high:.3f}"
        times = row["round_trip_microseconds"]
        lines.append(f"| {format_name(name, row)} | {row['ratio_median']:.3f} | {spread} | {interval} "
                     f"| {format_cost(row['server_cpu_nanoseconds_per_unit'])} "
                     f"| {rate:,.0f} | {format_time(times['p50'])} | {format_time(times['p99'])} "
                     f"| {100 * row['server_core_share']:.0f} % | {100 * row['load_core_share']:.0f} % |")
    lines.extend(f"| {name} | failed: {failure} |" for name, failure in failures.items())
    return "\n".join(lines) + "\n"


def format_overview(measured, placement):
    """One row per server, one column per scenario."""
    columns = [entry for entry in measured if entry["placement"] == placement]
    names = list(dict.fromkeys(name for entry in columns for name in [*entry["summary"], *entry["failures"]]))

    def cell(entry, name):
        if name in entry["failures"]:
            return "failed"
        row = entry["summary"].get(name)
        if row is None:
            return "—"
        if name == REFERENCE:
            return format_cost(row["server_cpu_nanoseconds_per_unit"])
        return f"{row['ratio_median']:.2f} ({row['ratio_min']:.2f}–{row['ratio_max']:.2f})"

    lines = [f"### Ratios; {placement}", "",
             wrap("Median (min–max) of the ratio to bare epoll in the same round; bare epoll: its CPU time per message, KiB (bulk) or connection "
                  "(churn)."), "",
             "| server | " + " | ".join(entry["scenario"]["label"] for entry in columns) + " |", "|---|" + "---|" * len(columns)]
    lines.extend(f"| {name} | " + " | ".join(cell(entry, name) for entry in columns) + " |" for name in names)
    return "\n".join(lines) + "\n"


def format_header(environment):
    placements = {TWO_CORES: "server on core {server_core}, load on core {load_core}", ONE_CORE: "both on core {server_core}"}
    where = "; ".join(f"{name}: {placements[name]}" for name in environment["placements"]).format(**environment)
    return "## Server CPU against bare epoll\n\n" + wrap(
        f"{environment['cpu']}, {environment['cores']} cores, Linux {environment['kernel']}; {where}; "
        f"network: {environment['network']}, {environment['congestion_control']}; {environment['rounds']} interleaved rounds of "
        f"{environment['seconds']:g} s after {environment['warmup_seconds']:g} s of warm-up; {environment['time']}.") + "\n"


def format_notes(notes):
    return "\n".join(["### Notes", ""] + [wrap(f"* {note}", "  ") for note in notes]) + "\n" if notes else ""


# ---- What to measure ----

def default_servers(binaries):
    bulk_program = binaries / "bench" / "penstock_bulk"
    servers = []
    for backend in ("epoll", "epoll-et"):
        commands = {"echo": [str(binaries / "penstock"), "echo", "--listen", "127.0.0.1:0", "--loops", "0", "--backend", backend]}
        if (ROOT / "bench" / "servers" / "penstock_bulk.cpp").exists() or bulk_program.exists():
            commands["bulk"] = [str(bulk_program), "--listen", "127.0.0.1:0", "--backend", backend]
        servers.append(Server(f"penstock-{backend}", commands))
    return servers


def reference_server(binaries):
    return Server(REFERENCE, {"echo": [str(binaries / "bench" / "epoll_echo")], "bulk": [str(binaries / "bench" / "epoll_bulk")]})


PEERS = {"libevent": ("libevent_echo", "libevent_bulk"), "libuv-docs": ("uv_docs_echo", None), "libuv-try": ("uv_try_echo", "uv_try_bulk"),
         "asio": ("asio_echo", "asio_bulk")}


def peer_servers(binaries, notes):
    """The servers on other libraries, as far as they are built."""
    servers = []
    for name, programs in PEERS.items():
        paths = [program and binaries / "bench" / program for program in programs]
        if any(path is not None and not path.exists() for path in paths):
            notes.append(f"{name} is left out: its library is not installed (tools/install_packages.sh bench), or it is not built.")
            continue
        servers.append(Server(name, {mode: [str(path)] for mode, path in zip(("echo", "bulk"), paths) if path}, is_peer=True))
    return servers


def named_command(text):
    name, equals, command = text.partition("=")
    if not name or not equals or not shlex.split(command):
        raise argparse.ArgumentTypeError(f"not NAME=COMMAND: {text}")
    return name, shlex.split(command)


def choose_servers(arguments, notes):
    servers = {}
    for mode, given in (("echo", arguments.server), ("bulk", arguments.bulk_server)):
        for name, command in given:
            servers.setdefault(name, Server(name, {})).commands[mode] = command
    if REFERENCE in servers:
        raise SystemExit(f"run.py: {REFERENCE} is the reference; give the server another name")
    if arguments.reference_only:
        return [reference_server(arguments.bin)]
    chosen = list(servers.values()) or default_servers(arguments.bin)
    if not servers and arguments.peers:
        chosen += peer_servers(arguments.bin, notes)
    return [reference_server(arguments.bin)] + chosen


def choose_scenarios(names):
    if not names:
        return [scenario for scenario in SCENARIOS if scenario.by_default]
    return [scenario for scenario in SCENARIOS if scenario.name in names or "all" in names]


def check_programs(arguments, servers, scenarios):
    modes = {scenario.mode for scenario in scenarios}
    programs = {str(arguments.load)} | {server.command(mode)[0] for server in servers for mode in modes if server.command(mode)}
    missing = sorted(program for program in programs if not os.access(program, os.X_OK) and not _is_on_path(program))
    if missing:
        print("run.py: missing: " + ", ".join(missing) + "\nBuild them with: make bench", file=sys.stderr)
        raise SystemExit(2)


def _is_on_path(program):
    return "/" not in program and any(os.access(os.path.join(folder, program), os.X_OK) for folder in os.get_exec_path())


def parse_arguments():
    parser = argparse.ArgumentParser(description="Measure servers' CPU per message against a bare epoll reference, in interleaved rounds.")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="interleaved rounds per scenario (5; a verdict needs at least 15)")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="measured time per server and round (1)")
    parser.add_argument("--warmup", type=float, default=0.3, metavar="S", help="time before it that does not count (0.3)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 2 rounds of 0.2 s; the numbers mean little")
    parser.add_argument("--scenario", action="append", default=[], choices=[scenario.name for scenario in SCENARIOS] + ["all"],
                        help="only this scenario (repeatable)")
    parser.add_argument("--server", action="append", default=[], type=named_command, metavar="NAME=COMMAND",
                        help="measure this echo server instead of penstock and the peers (repeatable)")
    parser.add_argument("--bulk-server", action="append", default=[], type=named_command, metavar="NAME=COMMAND",
                        help="the command of server NAME for the bulk scenarios (repeatable)")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="leave out the servers on libevent, libuv and asio")
    parser.add_argument("--reference-only", action="store_true", help="measure nothing but the reference")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build" / "release" / "bin", metavar="DIR", help="where the programs are")
    parser.add_argument("--one-core", dest="placements", action="store_const", const=[ONE_CORE], help="only with load and server on the same core")
    parser.add_argument("--two-cores", dest="placements", action="store_const", const=[TWO_CORES], help="only with load and server on two cores")
    parser.add_argument("--server-core", type=int, default=0, metavar="CORE")
    parser.add_argument("--load-core", type=int, default=1, metavar="CORE")
    parser.add_argument("--netns", choices=["auto", "yes", "no"], default="auto", nargs="?", const="yes",
                        help="measure in a network namespace of its own (auto: if root)")
    parser.add_argument("--congestion-control", default="reno", metavar="NAME", help="within that namespace (reno)")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="also write results.json, results.md and plots there")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.warmup = 2, 0.2, 0.1
    if arguments.rounds < 1 or not 0.0 < arguments.seconds <= 3600.0 or not 0.0 <= arguments.warmup <= 3600.0:
        parser.error("--rounds must be at least 1, --seconds above 0 and at most 3600, --warmup from 0 to 3600")
    if arguments.server and arguments.reference_only or arguments.bulk_server and arguments.reference_only:
        parser.error("--reference-only excludes --server and --bulk-server")
    available = os.sched_getaffinity(0)
    if arguments.placements == [ONE_CORE] or len(available) == 1:
        arguments.placements, arguments.load_core = [ONE_CORE], arguments.server_core
    arguments.placements = arguments.placements or [TWO_CORES, ONE_CORE]
    for core in (arguments.server_core, arguments.load_core):
        if core not in available:
            parser.error(f"core {core} is not available (these are: {sorted(available)}); see --one-core, --server-core, --load-core")
    arguments.bin = arguments.bin.resolve()
    arguments.load = arguments.bin / "bench" / "load"
    return arguments


def run_scenario(arguments, placement, scenario, servers, notes):
    taking_part = [server for server in servers if server.command(scenario.mode)]
    rounds, failures = [], {}
    for number in range(1, arguments.rounds + 1):
        results_of_round = {}
        for server in taking_part:
            if server.name in failures:
                continue
            print(f"{scenario.name}, {placement}: round {number} of {arguments.rounds}: {server.name}", file=sys.stderr)
            try:
                results_of_round[server.name] = measure(arguments, scenario, server)
            except RunError as failure:
                if not server.is_peer:
                    raise
                failures[server.name] = " ".join(str(failure).split())
        rounds.append(results_of_round)
    notes.extend(disturbances(scenario, placement, rounds))
    last = rounds[-1]
    notes.extend(f"{scenario.name}, {placement}: {name} said in the last round: {last[name]['server_said']}"
                 for name in last if last[name]["server_said"] and scenario.mode == "bulk")
    return {"scenario": dataclasses.asdict(scenario), "placement": placement, "summary": summarise(scenario, rounds), "failures": failures,
            "rounds": rounds}


def place(arguments, placement):
    """The same arguments for one placement of load and server."""
    placed = copy.copy(arguments)
    if placement == ONE_CORE:
        placed.load_core = placed.server_core
    return placed


def draw(folder, program_arguments):
    """Plots are made by another program: the python3 on the path may not be the one that Debian's matplotlib belongs to."""
    program = str(ROOT / "bench" / "plot.py")
    for python in dict.fromkeys((sys.executable, "/usr/bin/python3")):
        if not os.access(python, os.X_OK):
            continue
        if subprocess.run([python, "-c", "import matplotlib"], stderr=subprocess.DEVNULL, check=False).returncode == 0:
            if subprocess.run([python, program, *program_arguments, str(folder)], check=False).returncode != 0:
                print(f"{program} failed: no plots", file=sys.stderr)
            return
    print("No plots: they need matplotlib (Debian: python3-matplotlib).", file=sys.stderr)


def main():
    arguments = parse_arguments()
    notes = ["A smoke run (--quick): the numbers mean little."] if arguments.quick else []
    servers, scenarios = choose_servers(arguments, notes), choose_scenarios(arguments.scenario)
    check_programs(arguments, servers, scenarios)
    raise_descriptor_limit()
    network = choose_network(arguments.netns, arguments.congestion_control, notes)
    os.sched_setaffinity(0, {arguments.load_core})  # this program must not wake up on the server's core
    environment = describe_environment(network, arguments)
    print(format_header(environment), flush=True)

    measured, tables, error = [], [], None
    try:
        for placement in arguments.placements:
            for scenario in scenarios:
                entry = run_scenario(place(arguments, placement), placement, scenario, servers, notes)
                measured.append(entry)
                tables.append(format_table(scenario, placement, entry["summary"], entry["failures"]))
                print(tables[-1], flush=True)
    except RunError as failure:
        error = str(failure)
        notes.append(f"FAILED: {error}")
    overviews = [format_overview(measured, placement) for placement in arguments.placements
                 if sum(entry["placement"] == placement for entry in measured) > 1]
    print("\n".join([*overviews, format_notes(notes)]), flush=True)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        outcome = {"environment": environment, "servers": {server.name: server.commands for server in servers}, "scenarios": measured,
                   "notes": notes, "error": error}
        (arguments.out / "results.json").write_text(json.dumps(outcome, indent=1) + "\n")
        (arguments.out / "results.md").write_text("\n".join([format_header(environment), *overviews, *tables, format_notes(notes)]))
        draw(arguments.out, ["ratios"])
    failed_peers = sorted({name for entry in measured for name in entry["failures"]})
    if error or failed_peers:
        print(f"run.py: {error or 'failed, see the tables: ' + ', '.join(failed_peers)}", file=sys.stderr)
    return 1 if error or failed_peers else 0


if __name__ == "__main__":
    sys.exit(main())
