#!/usr/bin/env python3
"""Counts what one 64-byte echo costs a server: system calls (strace) and user instructions (callgrind).

Each is counted at two numbers of messages and the difference divided, so that start-up, accepting and ending drop out. Load and server share
a core unless told otherwise: then each epoll_wait finds nearly all connections ready, and its share repeats. On two cores that share depends on
how the two interleave. Needs strace and valgrind. README.md says what the reference must show.

    bench/count.py                                      the bare reference
    bench/count.py -- build/release/bin/penstock echo --listen 127.0.0.1:0
"""

import argparse
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


def count_system_calls(arguments, folder, messages):
    summary = folder / f"strace.{messages}"
    # -D: the server, not strace, is our child and gets the SIGTERM.
    serve(arguments, ["strace", "-D", "-f", "-c", "-U", "name,calls", "-o", str(summary), *arguments.command], messages)
    text = read_when_complete(summary, r"\stotal$|^total\s")
    return {name: int(calls) for name, calls in re.findall(r"^(\w+)\s+(\d+)$", text, re.MULTILINE)}


def count_instructions(arguments, folder, messages):
    profile = folder / f"callgrind.{messages}"
    serve(arguments, ["valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}", *arguments.command], messages)
    return int(re.search(r"^(?:summary|totals): (\d+)", read_when_complete(profile, r"^totals: \d+"), re.MULTILINE).group(1))


def parse_arguments():
    parser = argparse.ArgumentParser(description="Count system calls and user instructions per echo.")
    parser.add_argument("command", nargs="*", help="the server's command, after -- (default: the bare reference)")
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
    for program in ("strace", "valgrind", str(arguments.load), arguments.command[0]):
        if shutil.which(program) is None:
            parser.error(f"missing: {program} (the benchmark programs come from: make bench)")
    return arguments


def main():
    arguments = parse_arguments()
    fewer, more = arguments.messages
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        try:
            calls_fewer, calls_more = (count_system_calls(arguments, folder, messages) for messages in (fewer, more))
            instructions = [count_instructions(arguments, folder, messages) for messages in (fewer, more)]
        except run.RunError as error:
            print(f"count.py: {error}", file=sys.stderr)
            return 1
    calls_fewer.pop("total", None), calls_more.pop("total", None)
    per_message = {call: (count - calls_fewer.get(call, 0)) / (more - fewer) for call, count in calls_more.items()}
    print(f"system calls per message: {sum(per_message.values()):.3f}")
    for call, count in sorted(per_message.items(), key=lambda item: -item[1]):
        if count >= 0.001:
            print(f"  {call:<16} {count:.3f}")
    print(f"user instructions per message: {(instructions[1] - instructions[0]) / (more - fewer):.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
