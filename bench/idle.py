#!/usr/bin/env python3
"""What an idle connection costs a server: memory, wake-ups and CPU time.

Opens 10,000 connections to one server after the other; each echoes one message and is silent from then on. Memory per connection is the growth of
the server's VmRSS from 1,000 to 9,000 connections, divided by 8,000, so what a server holds anyway does not count; the kernel's memory for its
sockets does not either. Then nothing happens for a while, in which the server's context switches and CPU time are counted, and last every 100th
connection must still echo. Needs Python 3.11; the plot needs matplotlib.

Exit status: 0 all measured; 1 a wrong or missing byte, or a failed server; 2 wrong usage or a missing program.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import socket
import statistics
import sys
import time

import run

MESSAGE_BYTES = 64
FEWER, MORE = 0.1, 0.9  # of all connections: between these the growth is taken
SETTLE_SECONDS = 0.3
ANSWER_SECONDS_MAX = 5.0
CONNECTIONS_PER_CHECK = 100
SPARE_DESCRIPTORS = 100


def message(number):
    return number.to_bytes(8, "big") * (MESSAGE_BYTES // 8)


def echo_once(connection, number):
    connection.sendall(message(number))
    answer = b""
    while len(answer) < MESSAGE_BYTES:
        data = connection.recv(MESSAGE_BYTES - len(answer))
        if not data:
            raise run.RunError(f"connection {number}: the stream ended early")
        answer += data
    if answer != message(number):
        raise run.RunError(f"connection {number}: wrong bytes")


def open_connection(address, number):
    connection = socket.create_connection(address, timeout=ANSWER_SECONDS_MAX)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    echo_once(connection, number)
    return connection


def resident_bytes(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^VmRSS:\s+(\d+) kB$", text, re.MULTILINE).group(1)) * 1024


def context_switches(pid):
    """Voluntary ones of all threads: each is a wait that began."""
    total = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        text = (task / "status").read_text()
        total += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)$", text, re.MULTILINE).group(1))
    return total


def measure(arguments, name, command):
    with run.RunningServer(name, command, arguments.server_core) as server:
        host, port = server.address.split(":")
        pid = server.process.pid
        connections, resident = [], {0: resident_bytes(pid)}
        fewer, more, total = (round(share * arguments.connections) for share in (FEWER, MORE, 1.0))
        try:
            for goal in (fewer, more, total):
                while len(connections) < goal:
                    connections.append(open_connection((host, int(port)), len(connections)))
                time.sleep(SETTLE_SECONDS)
                resident[goal] = resident_bytes(pid)
            switches, cpu = context_switches(pid), run.process_cpu_seconds(pid)
            time.sleep(arguments.seconds)
            switches, cpu = context_switches(pid) - switches, run.process_cpu_seconds(pid) - cpu
            for number in range(0, total, CONNECTIONS_PER_CHECK):
                echo_once(connections[number], number)
        except OSError as error:
            raise run.RunError(f"{name}: connection {len(connections)}: {error}") from None
        finally:
            for connection in connections:
                connection.close()
    return {"bytes_per_connection": (resident[more] - resident[fewer]) / (more - fewer), "resident_bytes": resident[total],
            "resident_bytes_at_start": resident[0], "wake_ups": switches, "cpu_milliseconds": 1e3 * cpu}


def summarise(results):
    summary = {key: statistics.median(result[key] for result in results) for key in results[0]}
    growth = [result["bytes_per_connection"] for result in results]
    return summary | {"bytes_per_connection_range": [min(growth), max(growth)]}


def format_report(outcome):
    environment = outcome["environment"]
    lines = ["## Idle connections", "",
             run.wrap(f"{environment['cpu']}, Linux {environment['kernel']}; {environment['connections']:,} connections that echoed one message of "
                      f"{MESSAGE_BYTES} B each, then {environment['idle_seconds']:g} s of silence; medians of {environment['rounds']} interleaved rounds; "
                      f"{environment['time']}."), "",
             f"| server | bytes per connection (min–max) | resident with {environment['connections']:,} | resident with none | wake-ups | CPU |",
             "|---|---|---|---|---|---|"]
    for name, row in outcome["summary"].items():
        low, high = row["bytes_per_connection_range"]
        lines.append(f"| {name} | {row['bytes_per_connection']:,.0f} ({low:,.0f}–{high:,.0f}) | {row['resident_bytes'] / 2**20:.1f} MiB "
                     f"| {row['resident_bytes_at_start'] / 2**20:.1f} MiB | {row['wake_ups']:.0f} | {row['cpu_milliseconds']:.1f} ms |")
    lines.extend(f"| {name} | failed: {failure} |" for name, failure in outcome["failures"].items())
    return "\n".join([*lines, "", run.format_notes(outcome["notes"])])


def parse_arguments():
    parser = argparse.ArgumentParser(description="Measure what idle connections cost each server.")
    parser.add_argument("--connections", type=int, default=10000, metavar="N")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of silence (10)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="interleaved rounds (3)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 1 round, 1,000 connections, 1 s")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="leave out the servers on libevent, libuv and asio")
    parser.add_argument("--bin", type=pathlib.Path, default=run.ROOT / "build" / "release" / "bin", metavar="DIR", help="where the programs are")
    parser.add_argument("--server-core", type=int, default=0, metavar="CORE")
    parser.add_argument("--netns", choices=["auto", "yes", "no"], default="auto", help="a network namespace of its own (auto: if root)")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="also write idle.json, idle.md and a plot there")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.connections, arguments.seconds, arguments.rounds = 1000, 1.0, 1
    if not 10 <= arguments.connections <= 25000 or not 0.0 < arguments.seconds <= 60.0 or not 1 <= arguments.rounds <= 100:
        parser.error("--connections must be 10 to 25,000 (the ports to connect from), --seconds up to 60, --rounds 1 to 100")
    run.raise_descriptor_limit()
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    # Penstock serves nine tenths of its descriptors.
    if arguments.connections + SPARE_DESCRIPTORS > 0.9 * descriptors:
        parser.error(f"{arguments.connections} connections need more than the {descriptors} descriptors a process may have here")
    arguments.bin = arguments.bin.resolve()
    arguments.load = arguments.bin / "bench" / "load"
    return arguments


def main():
    arguments = parse_arguments()
    notes = ["A smoke run (--quick): the numbers mean little."] if arguments.quick else []
    servers = [run.reference_server(arguments.bin), *run.default_servers(arguments.bin)]
    if arguments.peers:
        servers += run.peer_servers(arguments.bin, notes)
    run.check_programs(arguments, servers, [scenario for scenario in run.SCENARIOS if scenario.mode == "echo"])
    network = run.choose_network(arguments.netns, "reno", notes)
    environment = {"connections": arguments.connections, "idle_seconds": arguments.seconds, "rounds": arguments.rounds, "network": network,
                   "kernel": os.uname().release, "cpu": run.cpu_name(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    results, failures = {server.name: [] for server in servers}, {}
    for number in range(1, arguments.rounds + 1):
        for server in servers:
            if server.name in failures:
                continue
            print(f"idle: round {number} of {arguments.rounds}: {server.name}", file=sys.stderr)
            try:
                results[server.name].append(measure(arguments, server.name, server.commands["echo"]))
            except run.RunError as failure:
                failures[server.name] = " ".join(str(failure).split())
    outcome = {"environment": environment, "results": results, "failures": failures, "notes": notes,
               "summary": {name: summarise(measured) for name, measured in results.items() if measured and name not in failures}}
    report = format_report(outcome)
    print(report)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "idle.json").write_text(json.dumps(outcome, indent=1) + "\n")
        (arguments.out / "idle.md").write_text(report)
        run.draw(arguments.out, ["idle"])
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
