#!/usr/bin/env python3
"""What servers do when it goes wrong: a client that never reads, one that finishes early, no descriptors left.

  never reads    one client sends up to 512 MiB and reads nothing. How much does the server take, and by how much does it grow? Meanwhile another
                 client sends 64 B every half second and waits for the answer.
  half-close     one client with a receive buffer of 128 KiB sends 8 MiB, reading only when it cannot send, then finishes its side and reads on:
                 how much of the 8 MiB comes back, and how does it end?
  descriptors    the server has 64 descriptors and 200 clients connect and send 64 B each. What CPU time does it use over 3 s, how many clients
                 does it serve, what does it log, and does it serve a new one when the others are gone?

The echo servers are those of run.py: bench/README.md says how each is written. Needs Python 3.11, nothing else.

Exit status: 0 all tried, whatever came out; 1 Penstock broke a promise or a byte was wrong; 2 wrong usage or a missing program.
"""

import argparse
import json
import os
import pathlib
import re
import select
import socket
import statistics
import struct
import sys
import time

import run

MEBIBYTE = 1 << 20
FLOOD_BYTES = 512 * MEBIBYTE
FLOOD_SECONDS_MAX = 15.0
FLOOD_GROWTH_MAX = 600 * MEBIBYTE
FLOOD_STALL_SECONDS = 3.0
OTHER_CLIENT_SECONDS = 0.5
HALF_CLOSE_BYTES = 8 * MEBIBYTE
HALF_CLOSE_BUFFER_BYTES = 128 * 1024
HALF_CLOSE_SECONDS_MAX = 20.0
BEFORE_READING_SECONDS = 0.2
DESCRIPTORS, CLIENTS = 64, 200
DESCRIPTOR_SECONDS = 3.0
ANSWER_SECONDS_MAX = 2.0
PENSTOCK_GROWTH_MAX = 4 * MEBIBYTE  # what README.md claims; the high-water mark is 256 KiB
PENSTOCK_CPU_MAX = 0.05
MESSAGE = bytes(range(64))


def pattern(size):
    """Of a prime period, like that of pattern.h: a lost or repeated block is a wrong byte."""
    period = bytes((position * 2654435761 >> 13) & 0xFF for position in range(65521))
    return (period * (size // len(period) + 1))[:size]


def address_of(server):
    host, port = server.address.split(":")
    return host, int(port)


def status_bytes(pid, key):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE).group(1)) * 1024


def answers(address, seconds):
    """Milliseconds until a new client has its 64 bytes back; None: not within so many seconds."""
    begin = time.monotonic()
    try:
        with socket.create_connection(address, timeout=seconds) as client:
            client.sendall(MESSAGE)
            received = b""
            while len(received) < len(MESSAGE):
                client.settimeout(max(0.01, begin + seconds - time.monotonic()))
                data = client.recv(len(MESSAGE))
                if not data:
                    return None
                received += data
            return 1e3 * (time.monotonic() - begin) if received == MESSAGE else None
    except OSError:
        return None


def flood(server):
    """The client that never reads. Ends when all is sent, nothing moves, the server has grown too much, or the time is over."""
    address, pid = address_of(server), server.process.pid
    resident = status_bytes(pid, "VmRSS")
    chunk = pattern(MEBIBYTE)
    sent, grown, slowest, unanswered = 0, 0, 0.0, 0
    begin = last_progress = next_other = time.monotonic()
    stalled_cpu = stalled_at = None
    with socket.create_connection(address) as client:
        client.setblocking(False)
        while True:
            moment = time.monotonic()
            try:
                sent += client.send(chunk[:min(len(chunk), FLOOD_BYTES - sent)])
                last_progress, stalled_at = moment, None
            except BlockingIOError:
                select.select([], [client], [], 0.02)
                if stalled_at is None:
                    stalled_at, stalled_cpu = moment, run.process_cpu_seconds(pid)
            except OSError as error:
                how = f"reset the client ({error.strerror})"
                break
            grown = max(grown, status_bytes(pid, "VmHWM") - resident)
            if moment >= next_other:
                took = answers(address, ANSWER_SECONDS_MAX)
                unanswered += took is None
                slowest = max(slowest, took or 0.0)
                next_other = time.monotonic() + OTHER_CLIENT_SECONDS
            if sent >= FLOOD_BYTES:
                how = "took all of it"
            elif grown >= FLOOD_GROWTH_MAX:
                how = "grew too much"
            elif moment - last_progress > FLOOD_STALL_SECONDS:
                how = "held it back"
            elif moment - begin > FLOOD_SECONDS_MAX:
                how = "time over"
            else:
                continue
            break
        # It may still be reading what the kernel holds.
        time.sleep(0.3)
        grown = max(grown, status_bytes(pid, "VmHWM") - resident)
        share = None
        if how == "held it back":
            share = (run.process_cpu_seconds(pid) - stalled_cpu) / (time.monotonic() - stalled_at)
    return {"sent_mebibytes": sent / MEBIBYTE, "grown_mebibytes": grown / MEBIBYTE, "how": how, "slowest_other_milliseconds": slowest,
            "unanswered_others": unanswered, "held_back_cpu_share": share}


def half_close(server):
    data = pattern(HALF_CLOSE_BYTES)
    received, sent, how = bytearray(), 0, "FIN"
    deadline = time.monotonic() + HALF_CLOSE_SECONDS_MAX
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, HALF_CLOSE_BUFFER_BYTES)
        client.connect(address_of(server))
        client.setblocking(False)
        try:
            while sent < len(data) and time.monotonic() < deadline:
                try:
                    sent += client.send(memoryview(data)[sent:sent + 65536])
                except BlockingIOError:
                    if select.select([], [client], [], 0.05)[1]:
                        continue
                    if select.select([client], [], [], 0.05)[0]:
                        received += client.recv(65536)
            client.shutdown(socket.SHUT_WR)
            time.sleep(BEFORE_READING_SECONDS)  # the server has seen the end before we read on
            client.settimeout(5.0)
            while time.monotonic() < deadline:
                piece = client.recv(65536)
                if not piece:
                    break
                received += piece
            else:
                how = "no end"
        except TimeoutError:
            how = "silence"
        except OSError as error:
            how = "RST" if isinstance(error, ConnectionResetError) else error.strerror
    if bytes(received) != data[:len(received)]:
        raise run.RunError(f"{server.name}: wrong bytes after the half-close")
    return {"sent_mebibytes": sent / MEBIBYTE, "received_mebibytes": len(received) / MEBIBYTE, "how": how, "complete": len(received) == len(data)}


def abandon(client):
    """Reset, so that nothing lingers between this and the next trial."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def exhaust(server):
    address, pid = address_of(server), server.process.pid
    clients = []
    try:
        for _ in range(CLIENTS):
            client = socket.create_connection(address, timeout=ANSWER_SECONDS_MAX)
            client.setblocking(False)
            clients.append(client)
            try:
                client.send(MESSAGE)
            except OSError:
                pass  # closed already; counted below
        time.sleep(0.5)
        begin, cpu = time.monotonic(), run.process_cpu_seconds(pid)
        time.sleep(DESCRIPTOR_SECONDS)
        cpu = (run.process_cpu_seconds(pid) - cpu) / (time.monotonic() - begin)
        served = closed = 0
        for client in clients:
            try:
                data = client.recv(4096)
                served += data == MESSAGE
                closed += data == b""
            except BlockingIOError:
                pass
            except OSError:
                closed += 1
    finally:
        for client in clients:
            abandon(client)
    time.sleep(0.3)
    return {"cpu_share": cpu, "served": served, "closed": closed, "waiting": CLIENTS - served - closed,
            "logged_bytes": os.fstat(server.errors.fileno()).st_size, "serves_again": answers(address, ANSWER_SECONDS_MAX) is not None}


TRIALS = {"never reads": (flood, None), "half-close": (half_close, None), "descriptors": (exhaust, DESCRIPTORS)}


def attempt(arguments, server, trial):
    """One trial with a fresh server. What a server does wrong, even ending, is a result."""
    function, descriptors = TRIALS[trial]
    try:
        with run.RunningServer(server.name, server.commands["echo"], arguments.server_core, descriptors) as running:
            return function(running)
    except (run.RunError, ProcessLookupError, FileNotFoundError, OSError) as failure:
        return {"failure": " ".join(str(failure).split())[:200]}


# ---- Words ----

def spread(results, key, form="{:,.1f}"):
    values = [result[key] for result in results if result[key] is not None]
    if not values:
        return "—"
    texts = [form.format(value) for value in (statistics.median(values), min(values), max(values))]
    return texts[0] if texts[1] == texts[2] else f"{texts[0]} ({texts[1]}–{texts[2]})"


def either(results, key):
    return ", ".join(dict.fromkeys(str(result[key]) for result in results))


def row_never_reads(results):
    others = sum(result["unanswered_others"] for result in results)
    return [spread(results, "sent_mebibytes", "{:,.0f}") + " MiB", spread(results, "grown_mebibytes") + " MiB", either(results, "how"),
            spread(results, "held_back_cpu_share", "{:.1%}"),
            f"{max(result['slowest_other_milliseconds'] for result in results):,.0f} ms" + (f", {others} never" if others else "")]


def row_half_close(results):
    return [spread(results, "received_mebibytes", "{:.2f}") + " MiB", either(results, "how")]


def row_descriptors(results):
    return [spread(results, "cpu_share", "{:.1%}"), spread(results, "served", "{:.0f}"), spread(results, "closed", "{:.0f}"),
            spread(results, "waiting", "{:.0f}"), spread([{"logged": result["logged_bytes"] / 1024} for result in results], "logged") + " KiB",
            "yes" if all(result["serves_again"] for result in results) else "no"]


TABLES = {
    "never reads": (f"One client sends {FLOOD_BYTES // MEBIBYTE} MiB and never reads", row_never_reads,
                    ["it could send", "the server grew by", "the server", "CPU while held back", "slowest answer to another client"]),
    "half-close": (f"{HALF_CLOSE_BYTES // MEBIBYTE} MiB, then half-close", row_half_close, ["came back", "ended with"]),
    "descriptors": (f"{DESCRIPTORS} descriptors, {CLIENTS} clients", row_descriptors,
                    ["CPU", "served", "closed", "waiting", "logged", "serves a new client afterwards"]),
}


def format_report(outcome):
    environment = outcome["environment"]
    parts = ["## When it goes wrong", "",
             run.wrap(f"{environment['cpu']}, Linux {environment['kernel']}; network: {environment['network']}; {environment['rounds']} rounds, "
                      f"median (min–max) where they differ; {environment['time']}."), ""]
    for trial, by_server in outcome["trials"].items():
        title, make_row, heads = TABLES[trial]
        parts += [f"### {title}", "", "| server | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
        for name, results in by_server.items():
            failures = [result["failure"] for result in results if "failure" in result]
            cells = make_row(results) if not failures else [f"ends: {failures[0].partition(';')[0]}"] + [""] * (len(heads) - 1)
            parts.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join([*parts, run.format_notes(outcome["notes"])])


def broken_promises(trials):
    """What must hold for Penstock."""
    for trial, by_server in trials.items():
        for name, results in by_server.items():
            for result in results:
                if not name.startswith("penstock"):
                    continue
                if "failure" in result:
                    yield f"{name}, {trial}: {result['failure']}"
                elif trial == "never reads" and (result["grown_mebibytes"] * MEBIBYTE > PENSTOCK_GROWTH_MAX or result["unanswered_others"]):
                    yield f"{name}, {trial}: grew by {result['grown_mebibytes']:.1f} MiB, {result['unanswered_others']} unanswered"
                elif trial == "half-close" and not (result["complete"] and result["how"] == "FIN"):
                    yield f"{name}, {trial}: {result['received_mebibytes']:.2f} MiB came back, then {result['how']}"
                elif trial == "descriptors" and (result["cpu_share"] > PENSTOCK_CPU_MAX or not result["serves_again"]):
                    yield f"{name}, {trial}: {result['cpu_share']:.1%} CPU, serves again: {result['serves_again']}"


def parse_arguments():
    parser = argparse.ArgumentParser(description="Try what servers promise when clients misbehave or descriptors run out.")
    parser.add_argument("--trial", action="append", default=[], choices=list(TRIALS), help="only this one (repeatable)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="interleaved rounds (3)")
    parser.add_argument("--quick", action="store_true", help="1 round")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="leave out the servers on libevent, libuv and asio")
    parser.add_argument("--bin", type=pathlib.Path, default=run.ROOT / "build" / "release" / "bin", metavar="DIR", help="where the programs are")
    parser.add_argument("--server-core", type=int, default=0, metavar="CORE")
    parser.add_argument("--netns", choices=["auto", "yes", "no"], default="auto", help="a network namespace of its own (auto: if root)")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="also write promises.json and promises.md there")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = 1
    if not 1 <= arguments.rounds <= 100:
        parser.error("--rounds must be 1 to 100")
    arguments.bin = arguments.bin.resolve()
    arguments.load = arguments.bin / "bench" / "load"
    return arguments


def main():
    arguments = parse_arguments()
    notes = []
    servers = [run.reference_server(arguments.bin), *run.default_servers(arguments.bin)]
    if arguments.peers:
        servers += run.peer_servers(arguments.bin, notes)
    run.check_programs(arguments, servers, [scenario for scenario in run.SCENARIOS if scenario.mode == "echo"])
    run.raise_descriptor_limit()
    network = run.choose_network(arguments.netns, "reno", notes)
    trials = {}
    for trial in arguments.trial or TRIALS:
        by_server = trials[trial] = {server.name: [] for server in servers}
        for number in range(1, arguments.rounds + 1):
            for server in servers:
                print(f"{trial}: round {number} of {arguments.rounds}: {server.name}", file=sys.stderr)
                by_server[server.name].append(attempt(arguments, server, trial))
    outcome = {"environment": {"cpu": run.cpu_name(), "kernel": os.uname().release, "network": network, "rounds": arguments.rounds,
                               "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
               "trials": trials, "notes": notes}
    report = format_report(outcome)
    print(report)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "promises.json").write_text(json.dumps(outcome, indent=1) + "\n")
        (arguments.out / "promises.md").write_text(report)
    broken = list(broken_promises(trials))
    for promise in broken:
        print(f"promises.py: BROKEN: {promise}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
