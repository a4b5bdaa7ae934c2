#!/usr/bin/env python3
"""What four neighbours that flood cost a quiet connection of the same loop, and what sparing it costs them.

Per server, in interleaved rounds: one connection sends 64 B and awaits them, at a modest pace, in turns alone and beside four connections that keep
1 MiB each under way (load/neighbours.c, which also says why the load's own work is not in the times). Reports the quiet one's times alone and beside
the floods, their ratio, and what the floods got through, also as a share of what they get through a Penstock that does not divide its time (the same
program with --divided no). With --compute the handlers compute for what they are given, in Penstock's servers only.

With --storm the neighbours connect and reset so many times a second, in place of flooding; reported is then also what is left of them afterwards:
memory, descriptors, and what the server still does when there is nothing to do.

Needs Python 3.11, nothing else.

Exit status: 0 all measured; 1 a wrong or missing byte, or a failed server; 2 wrong usage or a missing program.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

import run

LOAD_SECONDS_MAX = 120.0
SERVER_PRIORITY = 10  # of SCHED_FIFO; the load's are in load/neighbours.c
RATIO_MAX, SHARE_MIN = 2.0, 0.9  # what Penstock is to keep
UNFAIR = " (undivided)"
IDLE_SECONDS = 2.0  # in which the server is watched after a storm


def servers(arguments, notes):
    """Name -> command. Penstock's come first; each has a twin that does not divide its time."""
    bench = arguments.bin / "bench"
    chosen = {}
    for backend in ("epoll", "epoll-et"):
        command = [str(bench / "penstock_echo"), "--listen", "127.0.0.1:0", "--backend", backend, "--compute", str(arguments.compute)]
        chosen[f"penstock-{backend}"] = command
        if not arguments.storm:
            chosen[f"penstock-{backend}{UNFAIR}"] = [*command, "--divided", "no"]
    if arguments.compute > 0:
        return chosen
    chosen[run.REFERENCE] = [str(bench / "epoll_echo")]
    if arguments.peers:
        chosen |= {server.name: server.commands["echo"] for server in run.peer_servers(arguments.bin, notes)}
    return chosen


def state_of(process):
    """What a process holds and has used."""
    status = pathlib.Path(f"/proc/{process}/status").read_text()
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return {"resident_kibibytes": int(status.split("VmRSS:")[1].split()[0]),
            "descriptors": len(os.listdir(f"/proc/{process}/fd")),
            "cpu_seconds": (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")}


def what_is_left(before, process):
    """Behind a storm, against the state before it."""
    time.sleep(0.5)
    after = state_of(process)
    time.sleep(IDLE_SECONDS)
    later = state_of(process)
    return {"growth_mebibytes": (after["resident_kibibytes"] - before["resident_kibibytes"]) / 1024,
            "descriptors": after["descriptors"] - before["descriptors"],
            "idle_core_share": (later["cpu_seconds"] - after["cpu_seconds"]) / IDLE_SECONDS}


def measure(arguments, name, command):
    prefix = ["chrt", "-f", str(SERVER_PRIORITY)] if arguments.real_time else []
    cores = {arguments.server_core, arguments.load_core}
    with run.RunningServer(name, prefix + command, arguments.server_core) as server:
        load = [str(arguments.bin / "bench" / "neighbours"), "--to", server.address, "--server-process", str(server.process.pid),
                "--phases", str(arguments.phases), "--seconds", str(arguments.seconds)]
        load += ["--storm", str(arguments.storm)] if arguments.storm else ["--floods", str(arguments.floods)]
        before = state_of(server.process.pid)
        try:
            done = subprocess.run(load, stdin=subprocess.DEVNULL, capture_output=True,
                                  timeout=LOAD_SECONDS_MAX + 2 * arguments.phases * arguments.seconds,
                                  preexec_fn=lambda: os.sched_setaffinity(0, {arguments.load_core}))
        except subprocess.TimeoutExpired:
            raise run.RunError(f"{name}: the load did not end; cores {sorted(cores)}") from None
        if done.returncode != 0:
            raise run.RunError(f"{name}: {done.stderr.decode(errors='replace').strip()} (status {done.returncode})")
        result = json.loads(done.stdout)
        if arguments.storm:
            result["left"] = what_is_left(before, server.process.pid)
    for kind, quantile in (("ratio", "p50"), ("ratio_of_p99", "p99")):
        result[kind] = result["beside"]["answered_microseconds"][quantile] / result["solo"]["answered_microseconds"][quantile]
    return result


def share_of_undivided(name, results_of_round):
    """Of what the floods get through the same server undivided, in the same round; None: it has no such twin."""
    twin = results_of_round.get(name.removesuffix(UNFAIR) + UNFAIR)
    return twin and results_of_round[name]["beside"]["mebibytes_per_second"] / twin["beside"]["mebibytes_per_second"]


def summarise(rounds, failures):
    summary = {}
    for name in dict.fromkeys(name for results_of_round in rounds for name in results_of_round):
        if name in failures:
            continue
        results = [results_of_round[name] for results_of_round in rounds]
        shares = [share for share in (share_of_undivided(name, results_of_round) for results_of_round in rounds) if share]

        def median_of(phase, kind, quantile, results=results):
            return statistics.median(result[phase][f"{kind}_microseconds"][quantile] for result in results)

        summary[name] = {
            phase: {kind: {quantile: median_of(phase, kind, quantile) for quantile in ("p50", "p99")} for kind in ("answered", "woken")}
            for phase in ("solo", "beside")
        } | {
            "ratio": statistics.median(result["ratio"] for result in results),
            "ratio_range": [min(result["ratio"] for result in results), max(result["ratio"] for result in results)],
            "ratio_of_p99": statistics.median(result["ratio_of_p99"] for result in results),
            "connects_per_second": statistics.median(result["beside"]["connects_per_second"] for result in results),
            "left": {kind: max(result["left"][kind] for result in results) for kind in results[0].get("left", {})},
            "mebibytes_per_second": statistics.median(result["beside"]["mebibytes_per_second"] for result in results),
            "server_core_share": statistics.median(result["beside"]["server_core_share"] for result in results),
            "share_of_undivided": statistics.median(shares) if shares else None,
            "share_range": [min(shares), max(shares)] if shares else None,
        }
    return summary


def format_storm(outcome):
    environment = outcome["environment"]
    lines = ["## A quiet connection beside a storm of connects", "", describe(environment), "",
             run.wrap("Time from the quiet one's send until the answer is at its socket, median of the rounds' p50 and p99; ratios: beside the storm "
                      "to alone, of the medians and of the 99th percentiles, median of the rounds; left: half a second behind the last connect, "
                      "the worst round; idle: in the two seconds behind that."), "",
             "| server | alone p50 | p99 | beside p50 | p99 | ratio p50 | p99 | connects | server core | memory left | descriptors | idle |",
             "|---|---|---|---|---|---|---|---|---|---|---|---|"]
    for name, row in outcome["summary"].items():
        cells = [run.format_time(row[phase]["answered"][quantile]) for phase in ("solo", "beside") for quantile in ("p50", "p99")]
        left = row["left"]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['ratio']:.2f} | {row['ratio_of_p99']:.2f} | {row['connects_per_second']:,.0f}/s "
                     f"| {100 * row['server_core_share']:.0f} % | {left['growth_mebibytes']:.1f} MiB | {left['descriptors']} "
                     f"| {100 * left['idle_core_share']:.0f} % |")
    lines.extend(f"| {name} | failed: {failure} |" for name, failure in outcome["failures"].items())
    return "\n".join([*lines, "", run.format_notes(outcome["notes"])])


def describe(environment):
    priority = "at real-time priority" if environment["real_time"] else "at normal priority"
    others = f"{environment['storm']:,} connects a second" if environment["storm"] else f"{environment['floods']} floods"
    compute = f" whose handlers compute {environment['compute']:,} ns for each KiB" if environment["compute"] else ""
    return run.wrap(f"{environment['cpu']}, {environment['cores']} cores, Linux {environment['kernel']}; server on core "
                    f"{environment['server_core']}, load on core {environment['load_core']}, both {priority}; network: {environment['network']}, "
                    f"{environment['congestion_control']}; {others}{compute}; {environment['rounds']} interleaved rounds of "
                    f"{environment['phases']} phases of {environment['seconds']:g} s of each kind; {environment['time']}.")


def format_report(outcome):
    environment = outcome["environment"]
    if environment["storm"]:
        return format_storm(outcome)
    lines = ["## A quiet connection beside floods", "", describe(environment), "",
             run.wrap("Time from the quiet one's send until the answer is at its socket, median of the rounds' p50 and p99; ratio: p50 beside the "
                      "floods to p50 alone, median (min–max) of the rounds; share: of the same server's throughput when it does not divide its "
                      "time, in the same round."), "",
             "| server | alone p50 | p99 | beside p50 | p99 | ratio | floods | share | server core |", "|---|---|---|---|---|---|---|---|---|"]
    for name, row in outcome["summary"].items():
        cells = [run.format_time(row[phase]["answered"][quantile]) for phase in ("solo", "beside") for quantile in ("p50", "p99")]
        low, high = row["ratio_range"]
        share = "—"
        if row["share_of_undivided"] and not name.endswith(UNFAIR):
            share = "{:.2f} ({:.2f}–{:.2f})".format(row["share_of_undivided"], *row["share_range"])
        lines.append(f"| {name} | {' | '.join(cells)} | {row['ratio']:.2f} ({low:.2f}–{high:.2f}) | {row['mebibytes_per_second']:,.0f} MiB/s "
                     f"| {share} | {100 * row['server_core_share']:.0f} % |")
    lines.extend(f"| {name} | failed: {failure} |" for name, failure in outcome["failures"].items())
    return "\n".join([*lines, "", run.format_notes(outcome["notes"])])


def missed_goals(summary):
    for name, row in summary.items():
        if not name.startswith("penstock") or name.endswith(UNFAIR):
            continue
        if row["ratio"] > RATIO_MAX:
            yield f"{name}: the quiet one's median is {row['ratio']:.2f} times that alone; the goal is {RATIO_MAX}."
        if row["left"] and row["ratio_of_p99"] > RATIO_MAX:
            yield f"{name}: the quiet one's 99th percentile is {row['ratio_of_p99']:.2f} times that alone; the goal is {RATIO_MAX}."
        if row["share_of_undivided"] and row["share_of_undivided"] < SHARE_MIN:
            yield f"{name}: the floods get {row['share_of_undivided']:.2f} of the undivided throughput; the goal is {SHARE_MIN}."


def parse_arguments():
    parser = argparse.ArgumentParser(description="Measure a quiet connection alone and beside neighbours that flood, on each server.")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="interleaved rounds (5)")
    parser.add_argument("--phases", type=int, default=4, metavar="N", help="of each kind, per round and server (4)")
    parser.add_argument("--seconds", type=float, default=0.25, metavar="S", help="measured per phase (0.25)")
    parser.add_argument("--floods", type=int, default=4, metavar="N", help="connections that flood (4)")
    parser.add_argument("--storm", type=int, default=0, metavar="N",
                        help="connects a second, each reset at once, in place of floods (0: floods)")
    parser.add_argument("--compute", type=int, default=0, metavar="NS",
                        help="nanoseconds that a handler computes for each KiB it is given; peers are left out then (0)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 1 round of 1 phase; the numbers mean little")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="leave out the servers on libevent, libuv and asio")
    parser.add_argument("--normal-priority", dest="real_time", action="store_false",
                        help="do not raise the server above other processes (the load tries to be, as root)")
    parser.add_argument("--bin", type=pathlib.Path, default=run.ROOT / "build" / "release" / "bin", metavar="DIR", help="where the programs are")
    parser.add_argument("--server-core", type=int, default=0, metavar="CORE")
    parser.add_argument("--load-core", type=int, default=1, metavar="CORE")
    parser.add_argument("--netns", choices=["auto", "yes", "no"], default="auto", nargs="?", const="yes",
                        help="measure in a network namespace of its own (auto: if root)")
    parser.add_argument("--congestion-control", default="reno", metavar="NAME", help="within that namespace (reno)")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="also write fairness.json and fairness.md there")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.phases = 1, 1
    if arguments.rounds < 1 or arguments.phases < 1 or not 0.0 < arguments.seconds <= 60.0 or not 1 <= arguments.floods <= 64 \
            or not 0 <= arguments.compute <= 1_000_000 or not 0 <= arguments.storm <= 1_000_000:
        parser.error("--rounds and --phases must be at least 1, --seconds above 0 and at most 60, --floods from 1 to 64, --compute and --storm from 0 "
                     "to 1,000,000")
    available = os.sched_getaffinity(0)
    if arguments.server_core == arguments.load_core or not {arguments.server_core, arguments.load_core} <= available:
        parser.error(f"the server and the load need a core each of {sorted(available)}")
    arguments.bin = arguments.bin.resolve()
    arguments.real_time = arguments.real_time and os.geteuid() == 0 and shutil.which("chrt") is not None
    arguments.placements, arguments.warmup = [run.TWO_CORES], 0.1
    return arguments


def main():
    arguments = parse_arguments()
    notes = ["A smoke run (--quick): the numbers mean little."] if arguments.quick else []
    chosen = servers(arguments, notes)
    missing = sorted(program for program in {command[0] for command in chosen.values()} | {str(arguments.bin / "bench" / "neighbours")}
                     if not os.access(program, os.X_OK))
    if missing:
        print("fairness.py: missing: " + ", ".join(missing) + "\nBuild them with: make bench-fairness", file=sys.stderr)
        return 2
    if not arguments.real_time:
        notes.append("Not at real-time priority: other processes on the two cores count as the server's delay.")
    run.raise_descriptor_limit()
    network = run.choose_network(arguments.netns, arguments.congestion_control, notes)
    os.sched_setaffinity(0, {arguments.load_core})
    environment = run.describe_environment(network, arguments) | {"floods": arguments.floods, "storm": arguments.storm, "compute": arguments.compute, "phases": arguments.phases,
                                                                  "real_time": arguments.real_time}
    rounds, failures, error = [], {}, None
    try:
        for number in range(1, arguments.rounds + 1):
            results_of_round = {}
            for name, command in chosen.items():
                if name in failures:
                    continue
                print(f"round {number} of {arguments.rounds}: {name}", file=sys.stderr)
                try:
                    results_of_round[name] = measure(arguments, name, command)
                except run.RunError as failure:
                    if name == run.REFERENCE or name.startswith("penstock"):
                        raise
                    failures[name] = " ".join(str(failure).split())
            rounds.append(results_of_round)
    except run.RunError as failure:
        error = str(failure)
        notes.append(f"FAILED: {error}")
    summary = summarise(rounds, failures) if rounds else {}
    notes.extend(missed_goals(summary))
    outcome = {"environment": environment, "summary": summary, "failures": failures, "rounds": rounds, "notes": notes, "error": error}
    report = format_report(outcome)
    print(report)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        name = "storm" if arguments.storm else "compute" if arguments.compute else "fairness"
        (arguments.out / f"{name}.json").write_text(json.dumps(outcome, indent=1) + "\n")
        (arguments.out / f"{name}.md").write_text(report)
    return 1 if error or failures else 0


if __name__ == "__main__":
    sys.exit(main())
