#!/usr/bin/env python3
"""What it costs to send one message to 10,000 connections, and whether those that do not read cost the others anything.

Interleaved rounds of the publisher (servers/penstock_broadcast.cpp) and its audience (load/subscribers.c, which checks every byte): on one loop and on
two, with all connections reading and with a tenth of them stalled. A last run on each counts at the kernel seam from which memory bytes were sent.
Needs Python 3.11, nothing else.

Exit status: 0 all measured; 1 a wrong or missing byte, or a failed program; 2 wrong usage or a missing program.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

import run

SPARE_DESCRIPTORS = 100
PAYLOAD_ALLOCATIONS = 2  # the publisher's own: the bytes, and the SharedBytes that counts them
RUN_SECONDS_MAX = 180


def measure(arguments, loops, stalled, count_copies=False):
    server = subprocess.Popen(
        [str(arguments.bin / "penstock_broadcast"), "--listen", "127.0.0.1:0", "--loops", str(loops), "--connections", str(arguments.connections),
         "--messages", str(arguments.messages), "--size", str(arguments.size), "--interval-us", str(arguments.interval_ms * 1000),
         "--backlog", str(arguments.backlog), "--count-copies", "1" if count_copies else "0"], stdout=subprocess.PIPE, text=True)
    try:
        address = re.fullmatch(r"listening on (\S+)", server.stdout.readline().strip())
        if address is None:
            raise run.RunError("the publisher does not listen")
        load = subprocess.run([str(arguments.bin / "subscribers"), "--to", address[1], "--connections", str(arguments.connections),
                               "--stalled", str(stalled), "--size", str(arguments.size), "--messages", str(arguments.messages)],
                              capture_output=True, text=True, timeout=RUN_SECONDS_MAX)
        if load.returncode != 0:
            raise run.RunError(load.stderr.strip())
        account, _ = server.communicate(timeout=run.STOP_SECONDS_MAX)
        if server.returncode != 0:
            raise run.RunError(f"the publisher ended with {server.returncode}")
    except subprocess.TimeoutExpired as late:
        raise run.RunError(f"no end within {late.timeout:.0f} s") from None
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
    result = json.loads(load.stdout) | json.loads(account.splitlines()[-1])
    result["allocations_per_message"] = result["allocations"] / result["measured_messages"] - PAYLOAD_ALLOCATIONS
    result["cpu_microseconds_per_delivery"] = 1e6 * result["cpu_seconds"] / (result["measured_messages"] * arguments.connections)
    return result


def span(results, key, form="{:.2f}"):
    values = [result[key] for result in results]
    middle, low, high = (form.format(value) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}–{high})"


def format_report(arguments, environment, results, copies, notes):
    lines = ["## Broadcast", "",
             run.wrap(f"{environment['cpu']}, Linux {environment['kernel']}; {arguments.messages} messages of {arguments.size} B to {arguments.connections:,} "
                      f"connections, one every {arguments.interval_ms} ms; medians (min–max) of {arguments.rounds} interleaved rounds; policy drop-oldest "
                      f"with {arguments.backlog // 1024} KiB of backlog; {environment['time']}. Latency is from the publisher's clock to the end of the "
                      "message at a healthy reader; publisher and readers share the machine."), "",
             "| loops | stalled | latency p50, ms | p99, ms | max, ms | CPU per delivery, µs | allocations per message | dropped | resident, MiB |",
             "|---|---|---|---|---|---|---|---|---|"]
    for (loops, stalled), rows in results.items():
        resident = [{"mib": row["resident_max_kib"] / 1024} for row in rows]
        lines.append(f"| {max(1, loops)} | {stalled:,} | {span(rows, 'p50_ms')} | {span(rows, 'p99_ms')} | {span(rows, 'max_ms')} | "
                     f"{span(rows, 'cpu_microseconds_per_delivery')} | {span(rows, 'allocations_per_message')} | "
                     f"{span(rows, 'dropped', '{:,.0f}')} | {span(resident, 'mib', '{:.1f}')} |")
    counted = "; ".join(f"{max(1, loops)} loop{'s' if loops > 1 else ''}: {row['shared_pieces']:,} pieces sent from the shared payload, "
                        f"{row['copied_pieces']:,} from anywhere else" for (loops, _), row in copies.items())
    lines += ["", run.wrap(f"Counted at the kernel seam in runs of their own, with a tenth stalled: {counted}. The allocations are those of sending, for all "
                           f"loops together, and like the CPU time those of the second half of the messages: in the first, nodes are allocated for what begins to wait. The "
                           f"{PAYLOAD_ALLOCATIONS} by which the publisher makes the payload are left out.")]
    return "\n".join([*lines, "", run.format_notes(notes)])


def parse_arguments():
    parser = argparse.ArgumentParser(description="Measure what a broadcast costs.")
    parser.add_argument("--connections", type=int, default=10000, metavar="N", help="(10,000)")
    parser.add_argument("--messages", type=int, default=300, metavar="N", help="(300; the second half is measured, so that what may wait is there by then)")
    parser.add_argument("--size", type=int, default=1024, metavar="BYTES")
    parser.add_argument("--interval-ms", type=int, default=100, metavar="N", help="between two messages (100)")
    parser.add_argument("--backlog", type=int, default=32 * 1024, metavar="BYTES", help="ConnectionLimits::backlog_max (32 KiB)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 1 round, 500 connections")
    parser.add_argument("--bin", type=pathlib.Path, default=run.ROOT / "build" / "release" / "bin" / "bench", metavar="DIR")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="also write broadcast.json and broadcast.md there")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.connections, arguments.rounds = 500, 1
    if not 10 <= arguments.connections <= 25000 or not 1 <= arguments.rounds <= 100 or not 1 <= arguments.messages <= 10000:
        parser.error("--connections must be 10 to 25,000, --rounds 1 to 100, --messages 1 to 10,000")
    run.raise_descriptor_limit()
    for name in ("penstock_broadcast", "subscribers"):
        if not (arguments.bin / name).exists():
            parser.error(f"{arguments.bin / name} is missing; `make bench-broadcast` builds it")
    return arguments


def main():
    arguments = parse_arguments()
    notes = ["A smoke run (--quick): the numbers mean little."] if arguments.quick else []
    environment = {"kernel": os.uname().release, "cpu": run.cpu_name(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    tenth = arguments.connections // 10
    results = {(loops, stalled): [] for loops in (0, 2) for stalled in (0, tenth)}
    copies = {}
    try:
        for number in range(1, arguments.rounds + 1):
            for loops, stalled in results:
                print(f"broadcast: round {number} of {arguments.rounds}: {max(1, loops)} loop(s), {stalled} stalled", file=sys.stderr)
                results[loops, stalled].append(measure(arguments, loops, stalled))
        for loops in (0, 2):
            copies[loops, tenth] = measure(arguments, loops, tenth, count_copies=True)
    except run.RunError as failure:
        print(f"broadcast: {failure}", file=sys.stderr)
        return 1
    report = format_report(arguments, environment, results, copies, notes)
    print(report)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "broadcast.json").write_text(json.dumps({"environment": environment, "results": [
            {"loops": loops, "stalled": stalled, "rounds": rows} for (loops, stalled), rows in results.items()]}, indent=1) + "\n")
        (arguments.out / "broadcast.md").write_text(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
