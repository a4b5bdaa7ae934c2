#!/usr/bin/env python3
"""Counts what one 64-byte echo costs a server: system calls (strace), user instructions and, of those, the locked ones (callgrind).

Each is counted at two numbers of messages and the difference divided, so that start-up, accepting and ending drop out. Load and server share
a core unless told otherwise: then each epoll_wait finds nearly all connections ready, and its share repeats. On two cores that share depends on
how the two interleave. A locked instruction (x86: the lock prefix, or xchg with memory) is what an atomic that another core may write costs; plain stores
to atomics are not among them. Needs strace, valgrind and objdump. README.md says what the reference must show.

    bench/count.py                                      the bare reference
    bench/count.py --all                                every server that run.py measures, as a table
    bench/count.py --loops 1 2                          Penstock with so many loops, as a table
    bench/count.py -- build/release/bin/penstock echo --listen 127.0.0.1:0
"""

import argparse
import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import run

SUMMARY_SECONDS_MAX = 10.0


def serve(arguments, command, messages):
    """Runs the server for exactly so many messages, each byte checked."""
    with run.RunningServer("the server", command, arguments.server_core) as server:
        load = subprocess.run([str(arguments.load), "--to", server.address, "--connections", str(arguments.connections),
                               "--size", str(arguments.size), "--messages", str(messages)], capture_output=True, text=True,
                              preexec_fn=lambda: os.sched_setaffinity(0, {arguments.load_core}))
        if load.returncode != 0:
            raise run.RunError(load.stderr.strip())


def read_when_complete(path, pattern):
    """The tracer writes its summary after the server has ended."""
    deadline = time.monotonic() + SUMMARY_SECONDS_MAX
    while time.monotonic() < deadline:
        text = path.read_text() if path.exists() else ""
        if re.search(pattern, text, re.MULTILINE):
            return text
        time.sleep(0.02)
    raise run.RunError(f"no summary in {path}")


def count_system_calls(arguments, command, folder, messages):
    summary = folder / f"strace.{messages}"
    # -D: the server, not strace, is our child and gets the SIGTERM.
    serve(arguments, ["strace", "-D", "-f", "-c", "-U", "name,calls", "-o", str(summary), *command], messages)
    text = read_when_complete(summary, r"\stotal$|^total\s")
    return {name: int(calls) for name, calls in re.findall(r"^(\w+)\s+(\d+)$", text, re.MULTILINE)}


@functools.cache
def locked_addresses(path):
    """Where the object file has locked instructions."""
    if not path.startswith("/") or not pathlib.Path(path).is_file():
        return frozenset()
    listing = subprocess.run(["objdump", "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True).stdout
    return frozenset(int(address, 16) for address in re.findall(r"^\s*([0-9a-f]+):\s+(?:lock |xchg .*\()", listing, re.MULTILINE))


def locked_instructions(profile):
    """How many locked instructions ran, of a profile with a line for each instruction."""
    addresses, total, of_a_call = frozenset(), 0, False
    for line in profile.splitlines():
        if line.startswith("ob="):
            addresses = locked_addresses(line[3:])
        elif line.startswith("calls="):
            of_a_call = True  # the next line is what the callee cost
        elif line.startswith("0x"):
            address, _, cost = line.split()
            if not of_a_call and int(address, 16) in addresses:
                total += int(cost)
            of_a_call = False
    return total


def count_instructions(arguments, command, folder, messages):
    """(user instructions, those of them that are locked)"""
    profile = folder / f"callgrind.{messages}"
    serve(arguments, ["valgrind", "--tool=callgrind", "--dump-instr=yes", "--compress-pos=no", "--compress-strings=no",
                      f"--callgrind-out-file={profile}", *command], messages)
    text = read_when_complete(profile, r"^totals: \d+")
    return int(re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE).group(1)), locked_instructions(text)


def parse_arguments():
    parser = argparse.ArgumentParser(description="Count system calls and user instructions per echo.")
    parser.add_argument("command", nargs="*", help="the server's command, after -- (default: the bare reference)")
    parser.add_argument("--all", action="store_true", help="every server that run.py measures, as a table")
    parser.add_argument("--loops", type=int, nargs="+", default=[], metavar="N", help="Penstock with so many loops that serve, as a table")
    parser.add_argument("--messages", type=int, nargs=2, default=[20000, 120000], metavar=("FEWER", "MORE"))
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--size", type=int, default=64, metavar="BYTES")
    parser.add_argument("--server-core", type=int, default=0, metavar="CORE")
    parser.add_argument("--load-core", type=int, default=0, metavar="CORE")
    parser.add_argument("--bin", type=pathlib.Path, default=run.ROOT / "build" / "release" / "bin", metavar="DIR")
    arguments = parser.parse_args()
    if not 0 < arguments.messages[0] < arguments.messages[1]:
        parser.error("--messages needs two rising numbers")
    arguments.load = arguments.bin.resolve() / "bench" / "load"
    arguments.command = arguments.command or [str(arguments.bin.resolve() / "bench" / "epoll_echo")]
    if any(loops < 1 for loops in arguments.loops):
        parser.error("--loops needs numbers from 1 on")
    for program in ("strace", "valgrind", "objdump", str(arguments.load), arguments.command[0]):
        if shutil.which(program) is None:
            parser.error(f"missing: {program} (the benchmark programs come from: make bench)")
    return arguments


def count(arguments, command):
    """({system call: calls per message}, user instructions per message, locked ones per message)"""
    fewer, more = arguments.messages
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        calls_fewer, calls_more = (count_system_calls(arguments, command, folder, messages) for messages in (fewer, more))
        instructions = [count_instructions(arguments, command, folder, messages) for messages in (fewer, more)]
    calls_fewer.pop("total", None), calls_more.pop("total", None)
    per_message = {call: (calls - calls_fewer.get(call, 0)) / (more - fewer) for call, calls in calls_more.items()}
    all_instructions, locked = ((after - before) / (more - fewer) for before, after in zip(*instructions))
    return per_message, all_instructions, locked


def most_frequent(per_message):
    return [(call, calls) for call, calls in sorted(per_message.items(), key=lambda item: -item[1]) if calls >= 0.001]


def print_one(arguments):
    per_message, instructions, locked = count(arguments, arguments.command)
    print(f"system calls per message: {sum(per_message.values()):.3f}")
    for call, calls in most_frequent(per_message):
        print(f"  {call:<16} {calls:.3f}")
    print(f"user instructions per message: {instructions:.1f}, locked: {locked:.3f}")


def print_all(arguments):
    binaries, notes = arguments.bin.resolve(), []
    print("| server | system calls per message | user instructions per message | which system calls |\n|---|---|---|---|")
    for server in [run.reference_server(binaries), *run.default_servers(binaries), *run.peer_servers(binaries, notes)]:
        per_message, instructions, _ = count(arguments, server.commands["echo"])
        calls = ", ".join(f"{call} {calls:.2f}" for call, calls in most_frequent(per_message) if calls >= 0.005)
        print(f"| {server.name} | {sum(per_message.values()):.2f} | {instructions:,.0f} | {calls} |", flush=True)
    print(*notes, sep="\n", end="")


def print_loops(arguments):
    """Each loop has as many connections, so that its turns are alike."""
    each = arguments.connections
    print("| loops that serve | connections | system calls per message | user instructions per message | locked |\n|---|---|---|---|---|")
    for loops in arguments.loops:
        arguments.connections = each * loops
        # Undivided: under callgrind all turns are long, and dividing them would change what is counted.
        command = [str(arguments.bin.resolve() / "bench" / "penstock_echo"), "--listen", "127.0.0.1:0", "--loops", str(loops), "--divided", "no"]
        per_message, instructions, locked = count(arguments, command)
        print(f"| {loops} | {arguments.connections} | {sum(per_message.values()):.2f} | {instructions:,.0f} | {locked:.3f} |", flush=True)


def main():
    arguments = parse_arguments()
    try:
        (print_all if arguments.all else print_loops if arguments.loops else print_one)(arguments)
    except run.RunError as error:
        print(f"count.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
