#!/usr/bin/env python3
"""Compares ways to send from other threads: the two designs taught most, and Penstock's handles.

Runs build/release/bin/bench/designs (bench/designs/) for each design, number of producers and size of burst, and with a connection whose peer never
reads, in interleaved rounds (A B C, A B C, ...). Reports medians with minimum and maximum. What the designs are, and what each does wrong, is said
at the head of its source. Needs Python 3.11, nothing else.

Exit status: 0 all measured; 1 a wrong byte, a message out of order, or a program that did not end; 2 wrong usage or a missing program.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import run

DESIGNS = {
    "send-thread": "send thread",
    "functor-loop": "functors, eventfd",
    "handles": "Penstock's handles",
}
PRODUCERS = (1, 2, 4)
BURSTS = (1, 64)
STUCK_BURST = 64
RUN_SECONDS_MAX = 120.0
COLUMNS = {
    "send_nanoseconds": ("in send", "{:,.0f} ns"),
    "delivered_nanoseconds": ("until delivered", "{:,.0f} ns"),
    "wakeups_per_thousand": ("wake-ups per 1,000", "{:,.0f}"),
    "allocations_per_message": ("allocations", "{:.2f}"),
}


def cases():
    """(producers, burst, whether a connection is stuck), in the order of the tables."""
    for burst in BURSTS:
        for producers in PRODUCERS:
            yield producers, burst, False
    for producers in PRODUCERS:
        yield producers, STUCK_BURST, True


def measure(arguments, design, case):
    producers, burst, stuck = case
    command = [str(arguments.bin / "bench" / "designs"), "--design", design, "--producers", str(producers), "--burst", str(burst),
               "--messages", str(arguments.messages), "--connections", str(arguments.connections), "--size", str(arguments.size)]
    if stuck:
        command.append("--stuck")
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=RUN_SECONDS_MAX, check=False)
    except subprocess.TimeoutExpired:
        raise run.RunError(f"{design}: not all messages arrived within {RUN_SECONDS_MAX:.0f} s: {' '.join(command)}") from None
    if result.returncode != 0:
        raise run.RunError(f"{design}: {result.stderr.decode(errors='replace').strip()} (status {result.returncode}): {' '.join(command)}")
    return json.loads(result.stdout)


def spread(results, key):
    form = COLUMNS[key][1]
    values = [result[key] for result in results]
    number, _, unit = form.partition("}")
    texts = [(number + "}").format(value) for value in (statistics.median(values), min(values), max(values))]
    return (texts[0] if texts[1] == texts[2] else f"{texts[0]} ({texts[1]}–{texts[2]})") + unit


def table(measured, chosen):
    lines = ["| producers | design | " + " | ".join(head for head, _ in COLUMNS.values()) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    for case in chosen:
        for design, title in DESIGNS.items():
            lines.append(f"| {case[0]} | {title} | " + " | ".join(spread(measured[design, case], key) for key in COLUMNS) + " |")
    return lines


def stuck_table(measured):
    lines = ["| producers | design | sent to it | until delivered to the others | without it |", "|---|---|---|---|---|"]
    for producers in PRODUCERS:
        with_it, without = (producers, STUCK_BURST, True), (producers, STUCK_BURST, False)
        for design, title in DESIGNS.items():
            results = measured[design, with_it]
            lines.append(f"| {producers} | {title} | {results[0]['sent_to_the_stuck_one']:,} | {spread(results, 'delivered_nanoseconds')} "
                         f"| {spread(measured[design, without], 'delivered_nanoseconds')} |")
    return lines


def format_report(environment, measured, notes):
    everything = list(cases())
    parts = ["# Sending from other threads", "", "Written by `make bench-designs`.", "",
             run.wrap(f"{environment['cpu']}, {environment['cores']} cores, Linux {environment['kernel']}; {environment['connections']} connections, "
                      f"messages of {environment['size']} B, {environment['messages']:,} of them in each run; medians (min–max) of "
                      f"{environment['rounds']} interleaved round{'s' * (environment['rounds'] > 1)}; other processes and the hypervisor took {100 * environment['other_cpu_share']:.0f} % "
                      f"of the cores; {environment['time']}."), "",
             run.wrap("The designs are two that are taught widely, as they are taught, and Penstock's (`bench/designs/`): a guarded list, a counting "
                      "semaphore and a thread that sends; a vector of functors for each loop and an eventfd written for every send; "
                      "ConnectionHandle::send. Each producer sends a burst to the connections in turn and waits until it has arrived. Peers read "
                      "and check every byte."), "",
             run.wrap("*In send* is a producer's time for making a message and sending it. *Until delivered* is the time from the first send to the "
                      "last arrival, for each message. A *wake-up* is an eventfd written, or a wait for the semaphore that slept. *Allocations* are "
                      "all of the process, the message's own included."), ""]
    for burst in BURSTS:
        parts += [f"## Bursts of {burst}" if burst > 1 else "## One message at a time", "",
                  *table(measured, [case for case in everything if case[1] == burst and not case[2]]), ""]
    parts += ["## Beside a connection that does not read", "",
              run.wrap("One more connection, its kernel buffers full and 1 MiB queued for it; one message in 64 goes there besides. All messages for "
                       f"the others arrived, with each design. Bursts of {STUCK_BURST}."), "", *stuck_table(measured), ""]
    return "\n".join(parts) + ("\n" + run.format_notes(notes) if notes else "")


def measure_all(arguments):
    measured = {(design, case): [] for design in DESIGNS for case in cases()}
    for number in range(1, arguments.rounds + 1):
        for case in cases():
            print(f"designs: round {number} of {arguments.rounds}: {case[0]} producers, bursts of {case[1]}{', one stuck' if case[2] else ''}",
                  file=sys.stderr)
            for design in DESIGNS:
                measured[design, case].append(measure(arguments, design, case))
    return measured


def parse_arguments():
    parser = argparse.ArgumentParser(description="Compare ways to send from other threads.")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="interleaved rounds (7)")
    parser.add_argument("--messages", type=int, default=200_000, metavar="N", help="in each run, of all producers (200000)")
    parser.add_argument("--connections", type=int, default=64, metavar="N", help="64")
    parser.add_argument("--size", type=int, default=64, metavar="BYTES", help="of a message (64)")
    parser.add_argument("--quick", action="store_true", help="1 round of 20,000 messages")
    parser.add_argument("--netns", choices=["auto", "yes", "no"], default="auto", help="a network namespace of its own (auto: if root)")
    parser.add_argument("--bin", type=pathlib.Path, default=run.ROOT / "build" / "release" / "bin", metavar="DIR", help="where the programs are")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="also write designs.json and designs.md there")
    parser.add_argument("--table", type=pathlib.Path, metavar="FILE", help="also write the tables there")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.messages = 1, 20_000
    if not 1 <= arguments.rounds <= 100:
        parser.error("--rounds must be 1 to 100")
    arguments.bin = arguments.bin.resolve()
    if not (arguments.bin / "bench" / "designs").is_file():
        parser.error(f"{arguments.bin}/bench/designs does not exist; build the preset release")
    return arguments


def main():
    arguments = parse_arguments()
    notes = ["A smoke run (--quick): the numbers mean little."] if arguments.quick else []
    network = run.choose_network(arguments.netns, "reno", notes)
    cores = range(os.cpu_count())
    begin, (busy, stolen), children = time.monotonic(), run.cores_busy_seconds(cores), os.times()
    try:
        measured = measure_all(arguments)
    except run.RunError as failure:
        print(f"designs.py: {failure}", file=sys.stderr)
        return 1
    busy_after, stolen_after = run.cores_busy_seconds(cores)
    ended = os.times()
    own = sum(getattr(ended, key) - getattr(children, key) for key in ("user", "system", "children_user", "children_system"))
    other = max(0.0, busy_after - busy + stolen_after - stolen - own) / (time.monotonic() - begin) / len(cores)
    environment = {"cpu": run.cpu_name(), "cores": len(cores), "kernel": os.uname().release, "network": network, "rounds": arguments.rounds,
                   "messages": arguments.messages, "connections": arguments.connections, "size": arguments.size, "other_cpu_share": other,
                   "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    report = format_report(environment, measured, notes)
    print(report)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        results = [{"design": design, "producers": case[0], "burst": case[1], "stuck": case[2], "rounds": rounds}
                   for (design, case), rounds in measured.items()]
        (arguments.out / "designs.json").write_text(json.dumps({"environment": environment, "results": results}, indent=1) + "\n")
        (arguments.out / "designs.md").write_text(report)
    if arguments.table:
        arguments.table.write_text(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
