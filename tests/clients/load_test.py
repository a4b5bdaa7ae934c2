"""`penstock load`: against `penstock echo`, against servers that do wrong, and against nobody."""

import errno
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading

import readme_test
import support
from support import KIB, MIB, run_to_end

SUCCESS, FAILURE, USAGE, INTERRUPTED = 0, 1, 2, 130


class PythonServer:
    """A server in this process. handle(sock, number) serves each connection on a thread; its first is number 1."""

    def __init__(self, test, handle, path=None):
        self.accepted = 0
        self.ends = []  # how connections ended, as far as the handler tells
        self.marks = 0  # what handlers have marked
        self._handle = handle
        self._changed = threading.Condition()
        self.listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_STREAM)
        self.listener.bind(path or ("127.0.0.1", 0))
        self.listener.listen(256)
        self.address = f"unix:{path}" if path else "127.0.0.1:%d" % self.listener.getsockname()[1]
        self._threads = []
        self._open = set()
        self._closing = False
        test.addCleanup(self.close)
        test.evidence.append(lambda: f"--- python server: {self.accepted} accepted, ends {self.ends[:20]}")
        self._start(self._accept)

    def _start(self, function, *arguments):
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            with self._changed:
                if self._closing:
                    sock.close()
                    return
                self.accepted += 1
                self._open.add(sock)
                self._changed.notify_all()
            self._start(self._serve, sock, self.accepted)

    def _serve(self, sock, number):
        try:
            end = self._handle(sock, number)
        except OSError as error:
            end = type(error).__name__
        with self._changed:
            self.ends.append(end)
            self._open.discard(sock)
            self._changed.notify_all()
        sock.close()

    def mark(self):
        with self._changed:
            self.marks += 1
            self._changed.notify_all()

    def wait(self, condition, test, what):
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), support.SOON):
                test.fail(f"did not happen in time: {what}")

    def stop_listening(self):
        """In a way that wakes accept()."""
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()

    def close(self):
        with self._changed:
            self._closing = True
            for sock in self._open:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        self.stop_listening()
        for thread in self._threads:
            thread.join(support.SOON)


def echo(sock, _=None):
    """Echoes to the end and tells how it was: "eof" or the name of an exception."""
    while data := sock.recv(64 * KIB):
        sock.sendall(data)
    return "eof"


def silent(sock, _=None):
    """Takes everything and says nothing."""
    while sock.recv(64 * KIB):
        pass
    return "eof"


class LoadCase(support.TestCase):
    """Shared ways to run it."""

    def load(self, address, *options, status=SUCCESS, **how):
        """A run with --json that must end so; its report."""
        backend = ("--backend", self.backend) if self.backend else ()
        result = run_to_end(self, "load", "--to", address, *backend, "--json", *options, seconds=support.LATE, **how)
        self.assertEqual(result.status, status, f"{result.errors}\n{result.output}")
        return self.parse(result.output, status), result

    def parse(self, output, status):
        self.assertEqual(output.count("\n"), 1, f"one line and nothing else: {output!r}")
        report = json.loads(output)
        self.assertEqual(report["succeeded"], status == SUCCESS)
        return report

    def start(self, address, *options):
        """A run with --json that goes on."""
        return support.Child(self, [support.BINARY, "load", "--to", address, "--json", *map(str, options)])

    def assert_no_errors(self, report):
        errors = dict(report["errors"])
        self.assertEqual({name: value for name, value in errors.items() if value}, {})


@support.each_backend
class AgainstEcho(LoadCase):
    """`penstock echo` on the same back-end. Everything comes back."""

    def run_against_echo(self, *options, server_options=()):
        server = self.server(*server_options)
        report, result = self.load(f"127.0.0.1:{server.port}", *options)
        self.assertEqual(result.errors, "")
        summary = self.finish(server)[0]
        served = int(re.match(r"served (\d+) connections", summary).group(1))
        # Attempts that the end of the time cuts short may have got through.
        most = report["connections_made"] + (0 if report["rounds"] else report["connections"])
        self.assertTrue(report["connections_made"] <= served <= most, summary)
        self.assert_no_errors(report)
        return report

    def test_steady_messages(self):
        report = self.run_against_echo("--seconds", "0.3", "--connections", 20)
        self.assertEqual(report["backend"], self.backend)
        self.assertIn(report["connections_made"], range(1, 21))
        self.assertGreater(report["messages"], 0)
        self.assertEqual(report["bytes"], report["messages"] * 64, "at the end nothing is under way")
        self.assertGreaterEqual(report["messages"], report["messages_in_time"])
        latency = report["latency_nanoseconds"]
        self.assertEqual(latency["count"], report["messages"])
        ordered = [latency[name] for name in ("p50", "p90", "p99", "p99_9", "max")]
        self.assertEqual(ordered, sorted(ordered))
        self.assertGreater(ordered[0], 0)
        self.assertFalse(report["interrupted"])

    def test_depth_and_odd_sizes(self):
        for size, depth in ((1, 100), (65521, 3), (4097, 17)):
            with self.subTest(size=size, depth=depth):
                report = self.run_against_echo("--seconds", "0.2", "--connections", 3, "--size", size,
                                               "--depth", depth)
                self.assertEqual(report["bytes"], report["messages"] * size)

    def test_a_window_far_above_every_water_mark_does_not_deadlock(self):
        report = self.run_against_echo("--seconds", "0.3", "--connections", 2, "--size", "2MiB", "--depth", 8,
                                       server_options=("--high-water", "4KiB"))
        self.assertGreater(report["bytes"], 0)

    def test_half_close_gets_all_back(self):
        report = self.run_against_echo("--half-close", "--size", "1234567", "--rounds", 3, "--connections", 4,
                                       "--seconds", 60)
        self.assertEqual(report["messages"], 12)
        self.assertEqual(report["connections_made"], 12)
        self.assertEqual(report["bytes"], 12 * 1234567)

    def test_half_close_is_stopped_by_time_in_the_middle_without_an_error(self):
        report = self.run_against_echo("--half-close", "--connections", 2, "--seconds", "0.2")
        self.assertEqual(report["size"], 8 * MIB)
        self.assertGreater(report["bytes"], 0)

    def test_churn(self):
        for how in ((), ("--orderly",)):
            with self.subTest(how=how):
                report = self.run_against_echo("--churn", "--rounds", 10, "--connections", 5, "--seconds", 60, *how)
                self.assertEqual(report["connections_made"], 50)
                self.assertEqual(report["messages"], 50)

    def test_churn_is_stopped_by_time(self):
        report = self.run_against_echo("--churn", "--seconds", "0.2", "--connections", 5)
        self.assertGreater(report["connections_made"], 0)

    def test_slow_readers_take_no_more_than_their_rate(self):
        rate, connections = 128 * KIB, 2
        report = self.run_against_echo("--slow-reader", rate, "--connections", connections, "--size", "32KiB",
                                       "--depth", 4, "--seconds", "0.5")
        # One read is at most 64 KiB, and only the last one of each connection may exceed the pace.
        most = connections * (rate * report["seconds"] + 64 * KIB)
        self.assertLessEqual(report["bytes_in_time"], most)
        self.assertGreater(report["bytes_in_time"], 0)


class OtherWays(LoadCase):
    """Where it connects to, and what it prints."""

    def test_unix_sockets(self):
        with tempfile.TemporaryDirectory() as folder:
            server = PythonServer(self, echo, path=os.path.join(folder, "socket"))
            report, _ = self.load(server.address, "--seconds", "0.1", "--connections", 2)
            self.assertGreater(report["messages"], 0)
            self.assert_no_errors(report)

    def test_the_variable_chooses_the_back_end(self):
        server = self.server()
        report, _ = self.load(f"127.0.0.1:{server.port}", "--seconds", "0.1", "--connections", 1,
                              env=support.environment(PENSTOCK_BACKEND="poll"))
        self.assertEqual(report["backend"], "poll")
        self.finish(server)

    def test_the_text_tells_rates_latencies_connections_and_errors_and_no_progress_into_a_pipe(self):
        server = self.server()
        result = run_to_end(self, "load", "--to", f"127.0.0.1:{server.port}", "--seconds", "1.1", "--connections", 2)
        self.assertEqual(result.status, SUCCESS)
        self.assertEqual(result.errors, "")
        self.assertNotIn("\r", result.output)
        self.assertNotIn("\x1b", result.output)
        for told in (r"messages +[\d,.]+/s", r"MiB/s", r"p50 .*p90 .*p99 .*p99\.9 .*max ", r"connections +2 made",
                     r"errors +none"):
            self.assertRegex(result.output, told)
        self.finish(server)

    def test_a_terminal_sees_progress(self):
        server = self.server()
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        child = support.Child(self, [support.BINARY, "load", "--to", f"127.0.0.1:{server.port}", "--connections", "2",
                                     "--seconds", "1.3"], stdout=theirs)
        os.close(theirs)
        seen = b""
        try:
            while data := os.read(ours, 4096):
                seen += data
        except OSError:  # EIO: nobody has the other side any more
            pass
        self.assertEqual(child.wait("the load ends"), SUCCESS)
        self.assertRegex(seen, rb"\r +1 s .*messages|\r +1 s  [\d,.]+/s")
        self.assertIn(b"errors       none", seen)
        self.finish(server)

    def test_a_full_device_is_told(self):
        server = self.server()
        with open("/dev/full", "wb") as full:
            child = support.Child(self, [support.BINARY, "load", "--to", f"127.0.0.1:{server.port}", "--seconds",
                                         "0.1", "--connections", "1"], stdout=full)
        self.assertEqual(child.wait("the load ends"), FAILURE)
        self.assertIn("standard output", child.errors)
        self.finish(server)


class WrongServers(LoadCase):
    """Servers that lose, change or keep bytes are found out."""

    def test_a_changed_byte(self):
        def corrupt(sock, _):
            seen = 0
            while data := bytearray(sock.recv(64 * KIB)):
                if seen <= 1000 < seen + len(data):
                    data[1000 - seen] ^= 1
                seen += len(data)
                sock.sendall(data)

        server = PythonServer(self, corrupt)
        report, result = self.load(server.address, "--seconds", 60, "--connections", 3, status=FAILURE)
        self.assertEqual(report["errors"]["wrong_bytes"], 3, "each connection ends with its wrong byte, and then all")
        found = report["errors"]["first_wrong_bytes"]
        self.assertEqual(sorted(each["connection"] for each in found), [1, 2, 3])
        for each in found:
            self.assertEqual(each["offset"], 1000)
            self.assertEqual(each["got"], each["expected"] ^ 1)
        self.assertEqual(len(result.error_lines), 3)
        self.assertIn("offset 1000", result.error_lines[0])

    def test_a_lost_a_repeated_and_a_foreign_buffer(self):
        for name, change in (("lost", lambda data: data[:128] + data[192:]),
                             ("repeated", lambda data: data[:64] + data[:64] + data[128:]),
                             ("swapped", lambda data: data[64:128] + data[:64] + data[128:])):
            def serve(sock, _, change=change):
                sock.sendall(change(support.receive_exactly(sock, 512)))
                return echo(sock)

            with self.subTest(name=name):
                server = PythonServer(self, serve)
                report, _ = self.load(server.address, "--seconds", 60, "--connections", 1, "--depth", 8,
                                      status=FAILURE)
                self.assertEqual(report["errors"]["wrong_bytes"], 1)
                self.assertLess(report["errors"]["first_wrong_bytes"][0]["offset"], 256)

    def test_more_bytes_than_were_sent(self):
        def add(sock, _):
            sock.sendall(support.receive_exactly(sock, 64) + b"!")
            return echo(sock)

        server = PythonServer(self, add)
        report, _ = self.load(server.address, "--half-close", "--size", 64, "--seconds", 60, "--connections", 1,
                              status=FAILURE)
        self.assertEqual(report["errors"]["first_wrong_bytes"],
                         [{"connection": 1, "offset": 64, "expected": None, "got": ord("!")}])

    def test_a_tail_lost_at_the_half_close(self):
        def drop_tail(sock, _):
            sock.sendall(support.receive_to_end(sock)[:-10])

        server = PythonServer(self, drop_tail)
        report, _ = self.load(server.address, "--half-close", "--size", "100000", "--seconds", "0.3",
                              "--connections", 2, status=FAILURE)
        self.assertGreaterEqual(report["errors"]["truncated"], 1)
        self.assertEqual(report["messages"], 0)
        for each in report["errors"]["first_truncated"]:
            self.assertEqual((each["received"], each["expected"]), (99990, 100000))

    def test_an_end_while_messages_are_owed(self):
        def leave(sock, _):
            sock.sendall(support.receive_exactly(sock, 100)[:40])

        server = PythonServer(self, leave)
        report, _ = self.load(server.address, "--size", 100, "--seconds", "0.2", "--connections", 1, status=FAILURE)
        self.assertGreaterEqual(report["errors"]["truncated"], 1)
        self.assertEqual(report["errors"]["first_truncated"][0], {"connection": 1, "received": 40, "expected": 100})
        self.assertGreaterEqual(server.accepted, 1)

    def test_resets_are_counted_and_connections_made_anew(self):
        def reset_first_three(sock, number):
            if number > 3:
                sock.sendall(sock.recv(100))
                server.mark()
                return echo(sock)
            sock.recv(10)
            support.reset(sock)

        server = PythonServer(self, reset_first_three)
        child = self.start(server.address, "--seconds", 3600, "--connections", 2, "--size", 100)
        server.wait(lambda server: server.marks == 2, self, "two connections are served in the end")
        child.signal(signal.SIGINT)
        self.assertEqual(child.wait("it ends by the signal"), FAILURE)
        report = self.parse(child.output, FAILURE)
        self.assertEqual(report["errors"]["resets"], 3)
        self.assertEqual(report["connections_made"], 5)
        self.assertGreater(report["messages"], 0)

    def test_a_server_that_says_nothing_times_out(self):
        server = PythonServer(self, silent)
        report, _ = self.load(server.address, "--seconds", "0.5", "--connections", 2, "--timeout", "100ms",
                              status=FAILURE)
        self.assertGreaterEqual(report["errors"]["timeouts"], 1)

    def test_what_has_not_come_at_the_end_is_missing(self):
        def serve(sock, _):
            sock.sendall(support.receive_exactly(sock, 64)[:-1])
            server.mark()
            return silent(sock)

        server = PythonServer(self, serve)
        child = self.start(server.address, "--seconds", 3600, "--connections", 3, "--drain", "300ms", "--size", 65)
        server.wait(lambda server: server.marks == 3, self, "three messages have arrived")
        child.signal(signal.SIGINT)
        self.assertEqual(child.wait("it ends by the signal"), FAILURE)
        report = self.parse(child.output, FAILURE)
        self.assertEqual(report["errors"]["missing"], 3)
        self.assertEqual(report["errors"]["missing_bytes"], 3 * 2)

    def test_churn_ends_by_a_reset_or_in_order(self):
        for how, end in (((), "ConnectionResetError"), (("--orderly",), "eof")):
            with self.subTest(how=how):
                server = PythonServer(self, echo)
                report, _ = self.load(server.address, "--churn", "--rounds", 3, "--connections", 1, "--seconds", 60,
                                      *how)
                self.assertEqual(report["messages"], 3)
                server.wait(lambda server: len(server.ends) == 3, self, "three ends")
                self.assertEqual(server.ends, [end] * 3)

    def test_attempts_that_fail_after_the_first_connection_are_counted_and_are_no_failure(self):
        def serve_one(sock, _):
            server.stop_listening()
            return echo(sock)

        server = PythonServer(self, serve_one)
        report, _ = self.load(server.address, "--churn", "--connections", 1, "--seconds", "0.5")
        self.assertEqual(report["messages"], 1)
        self.assertGreaterEqual(report["errors"]["connect_failures"], 1)
        self.assertEqual(report["errors"]["connect"], {"Connection refused": report["errors"]["connect_failures"]})


class Nobody(LoadCase):
    """Without a server it ends at once and says what to do."""

    def assert_one_line(self, result, *mentions):
        self.assertEqual(len(result.error_lines), 1, result.errors)
        for mention in mentions:
            self.assertIn(mention, result.error_lines[0])

    def test_a_port_where_nobody_listens(self):
        address = f"127.0.0.1:{support.free_port(self.random)}"
        result = run_to_end(self, "load", "--to", address)
        self.assertEqual(result.status, FAILURE)
        self.assertEqual(result.output, "")
        self.assert_one_line(result, address, "nobody listens", "penstock echo --listen", "--to")

    def test_json_tells_it_too_after_one_attempt(self):
        report, result = self.load(f"127.0.0.1:{support.free_port(self.random)}", status=FAILURE)
        self.assertEqual(report["errors"]["connect"], {"Connection refused": 1})
        self.assertEqual(report["connections_made"], 0)
        self.assert_one_line(result, "nobody listens")

    def test_a_unix_socket_that_is_not_there(self):
        result = run_to_end(self, "load", "--to", "unix:/nowhere/at/all")
        self.assertEqual(result.status, FAILURE)
        self.assert_one_line(result, "there is no unix:/nowhere/at/all", "start a server")


def run_out_of_ports():
    """What the child of PortsRunOut does, in a network of its own with 32 local ports."""
    if not readme_test.enter_own_network():
        sys.exit(NOT_HERE)
    try:
        for name, value in (("ip_local_port_range", "32768 32799"), ("tcp_tw_reuse", "0")):
            with open(f"/proc/sys/net/ipv4/{name}", "w", encoding="ascii") as setting:
                setting.write(value)
    except OSError:
        sys.exit(NOT_HERE)
    command = [support.BINARY, "echo", "--listen", "127.0.0.1:7000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            server.stdout.readline()
            for options in (("--connections", "4"), ("--connections", "1")):
                run = subprocess.run([support.BINARY, "load", "--to", "127.0.0.1:7000", "--churn", "--orderly",
                                      "--seconds", "0.6", "--json", *options], capture_output=True, text=True,
                                     check=False, timeout=support.LATE)
                print(json.dumps({"status": run.returncode, "report": json.loads(run.stdout), "errors": run.stderr}))
        finally:
            server.terminate()


NOT_HERE = 77


class PortsRunOut(LoadCase):
    """Connections that end in order keep their port in TIME_WAIT."""

    def test_attempts_without_a_port_wait_and_are_counted(self):
        child = subprocess.run([sys.executable, __file__, "--inside"], capture_output=True, text=True, check=False,
                               timeout=2 * support.LATE)
        if child.returncode == NOT_HERE:
            self.skipTest("no network of its own with settings of its own here")
        self.assertEqual(child.returncode, 0, child.stdout + child.stderr)
        first, second = (json.loads(line) for line in child.stdout.splitlines())
        no_port = os.strerror(errno.EADDRNOTAVAIL)
        self.assertEqual(first["status"], SUCCESS)
        self.assertLessEqual(first["report"]["messages"], 32)
        self.assertEqual(list(first["report"]["errors"]["connect"]), [no_port])
        # Four connections, which wait ever longer between their attempts.
        self.assertIn(first["report"]["errors"]["connect"][no_port], range(1, 400))
        self.assertEqual(second["status"], FAILURE, "no connection could be made")
        self.assertEqual(second["report"]["errors"]["connect"], {no_port: 1})
        self.assertIn("TIME_WAIT", second["errors"])


class Usage(LoadCase):
    """What cannot be is refused with one line and status 2."""

    def test_refusals(self):
        nowhere = ("--to", "127.0.0.1:9")
        for arguments, mention in (
                ((), "--to"),
                (("--to", "nonsense"), "nonsense"),
                (("--to", "127.0.0.1:0"), "port 0"),
                ((*nowhere, "--size", "0"), "--size 0"),
                ((*nowhere, "--size", "big"), "--size"),
                ((*nowhere, "--connections", "0"), "--connections 0"),
                ((*nowhere, "--connections", "-1"), "--connections"),
                ((*nowhere, "--connections", "100000000"), "ulimit -n"),
                ((*nowhere, "--depth", "0"), "--depth 0"),
                ((*nowhere, "--seconds", "0"), "--seconds 0"),
                ((*nowhere, "--seconds", "soon"), "--seconds"),
                ((*nowhere, "--slow-reader", "0"), "--slow-reader 0"),
                ((*nowhere, "--churn", "--half-close"), "--churn and --half-close"),
                ((*nowhere, "--churn", "--depth", "2"), "--depth 2"),
                ((*nowhere, "--orderly"), "--orderly"),
                ((*nowhere, "--rounds", "3"), "--rounds"),
                ((*nowhere, "--backend", "kqueue"), "kqueue"),
                ((*nowhere, "--no-such-option"), "--no-such-option")):
            with self.subTest(arguments=arguments):
                result = run_to_end(self, "load", *arguments)
                self.assertEqual(result.status, USAGE, result.errors)
                self.assertEqual(len(result.error_lines), 1, result.errors)
                self.assertIn(mention, result.error_lines[0])
                self.assertEqual(result.output, "")

    def test_connections_beyond_the_descriptors(self):
        result = run_to_end(self, "load", "--to", "127.0.0.1:9", "--connections", 100, nofile=64)
        self.assertEqual(result.status, USAGE)
        self.assertIn("--connections 100", result.errors)

    def test_the_help_tells_the_options_and_the_exit_codes(self):
        text = run_to_end(self, "load", "--help").output
        for told in ("--to", "--connections", "--size", "--depth", "--seconds", "--churn", "--orderly",
                     "--half-close", "--rounds", "--slow-reader", "--timeout", "--drain", "--backend", "--json", "TIME_WAIT",
                     "Exit codes", "130"):
            self.assertIn(told, text)


class Signals(LoadCase):
    """The first signal ends it in order, the second at once."""

    def test_a_signal_ends_it_early_with_its_report(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number=number):
                server = PythonServer(self, echo)
                child = self.start(server.address, "--seconds", 3600, "--connections", 3)
                server.wait(lambda server: server.accepted == 3, self, "three connections")
                child.signal(number)
                self.assertEqual(child.wait("it ends by the signal"), SUCCESS)
                report = self.parse(child.output, SUCCESS)
                self.assertTrue(report["interrupted"])
                self.assertEqual(report["bytes"], report["messages"] * 64, "what was owed has come")
                self.assert_no_errors(report)

    def test_a_second_signal_ends_it_at_once(self):
        server = PythonServer(self, silent)
        child = self.start(server.address, "--seconds", 3600, "--connections", 3)
        server.wait(lambda server: server.accepted == 3, self, "three connections")
        child.signal(signal.SIGINT)
        child.signal(signal.SIGTERM)  # another one, because two of a kind may be told as one
        self.assertEqual(child.wait("it ends by the second signal"), INTERRUPTED)
        self.assertEqual(child.output, "")

    def test_a_signal_before_the_first_connection(self):
        # A full backlog: the kernel drops what comes, and the attempt waits.
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            fillers = []
            for _ in range(2):
                filler = socket.socket()
                self.addCleanup(filler.close)
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
                fillers.append(filler)
            child = self.start("127.0.0.1:%d" % listener.getsockname()[1], "--seconds", 3600)
            self.eventually(lambda: self.blocks_signals(child), "it has taken its signals over")
            child.signal(signal.SIGINT)
            self.assertEqual(child.wait("it ends by the signal"), FAILURE)
            self.assertIn("interrupted before", child.errors)

    def blocks_signals(self, child):
        with open(f"/proc/{child.pid}/status", encoding="ascii") as status:
            mask = next(line for line in status if line.startswith("SigBlk:"))
        return int(mask.split()[1], 16) >> (signal.SIGTERM - 1) & 1


if __name__ == "__main__":
    if sys.argv[1:] == ["--inside"]:
        run_out_of_ports()
    else:
        support.main()
