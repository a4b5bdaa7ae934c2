"""The command line of penstock: help, version, every refusal, the environment, the lines it prints."""

import json
import os
import pathlib
import re
import resource
import signal
import socket
import subprocess

import support
from support import environment, run_to_end

USAGE, FAILURE = 2, 1
COMMANDS = ("echo", "load", "trace")

# Words by which a message says what to do about it. The wording is free; that it advises is required.
ADVICE = re.compile(
    r"(?i)\b(use|write|try|choose|pick|give|set|stop|raise|lower|run|see|pass|expected|expects|must|should|needs?|"
    r"known|valid|one of|at most|at least|between|for example|e\.g\.|like|ulimit|available|supported|--help|instead)\b")


class CommandLineCase(support.TestCase):
    """Shared checks."""

    def assert_one_clear_line(self, result, *mentions):
        self.assertEqual(len(result.error_lines), 1, f"one line on stderr: {result.errors!r}")
        line = result.error_lines[0]
        for mention in mentions:
            self.assertIn(mention, line, "the line names what it is about")
        self.assertRegex(line, ADVICE, "the line says what to do")
        self.assertNotIn("\x1b", line, "no escape codes into a file")
        self.assertNotRegex(line, r"terminate called|std::|what\(\)", "no raw exception")

    def assert_refused(self, arguments, status, *mentions, **how):
        result = run_to_end(self, *arguments, **how)
        self.assertEqual(result.status, status, f"exit status of {arguments}: stderr {result.errors!r}")
        self.assert_one_clear_line(result, *mentions)
        self.assertNotIn("listening", result.output)


class Help(CommandLineCase):
    """--help and --version."""

    def test_help_is_on_stdout_with_status_zero(self):
        for arguments in ((), *((command,) for command in COMMANDS)):
            with self.subTest(arguments=arguments):
                result = run_to_end(self, *arguments, "--help")
                self.assertEqual(result.status, 0)
                self.assertEqual(result.errors, "")
                self.assertRegex(result.output, r"(?i)usage")
                self.assertNotIn("\x1b", result.output)

    def test_the_help_names_the_commands_and_their_options(self):
        whole = run_to_end(self, "--help").output
        for command in COMMANDS:
            self.assertRegex(whole, rf"\b{command}\b")
        echo = run_to_end(self, "echo", "--help").output
        self.assertIn("--log-level", whole + echo)
        for option in ("--listen", "--loops", "--backend", "--high-water", "--max-connections", "--idle-timeout",
                       "--connections-per-source", "--accept-rate", "--balance", "--stop-deadline"):
            with self.subTest(option=option):
                self.assertIn(option, echo)
        trace = run_to_end(self, "trace", "--help").output
        for option in ("--bytes", "--backend", "--receive-buffer", "--reader-rate", "--json"):
            with self.subTest(option=option):
                self.assertIn(option, trace)

    def test_version_is_a_number_on_stdout_and_the_same_everywhere(self):
        versions = set()
        for arguments in ((), *((command,) for command in COMMANDS)):
            with self.subTest(arguments=arguments):
                result = run_to_end(self, *arguments, "--version")
                self.assertEqual(result.status, 0)
                self.assertEqual(result.errors, "")
                self.assertRegex(result.output, r"\d+\.\d+")
                versions.add(re.search(r"\d+\.\d+(\.\d+)?\S*", result.output).group(0))
        self.assertEqual(len(versions), 1, versions)

    def test_help_wins_over_what_else_is_on_the_line(self):
        result = run_to_end(self, "echo", "--listen", "127.0.0.1:0", "--help")
        self.assertEqual(result.status, 0)
        self.assertNotIn("listening", result.output)


class Refusals(CommandLineCase):
    """Usage errors exit with 2, each with one line on stderr that says what to do."""

    def test_no_command_or_an_unknown_one(self):
        self.assertEqual(run_to_end(self).status, USAGE)
        result = run_to_end(self, "swim")
        self.assertEqual(result.status, USAGE)
        self.assertIn("swim", result.errors)

    def test_bad_addresses(self):
        for address in ("nonsense", "127.0.0.1", "127.0.0.1:", "127.0.0.1:port", "127.0.0.1:65536", "127.0.0.1:-1",
                        "127.0.0.1:99999999999999999999", "999.0.0.1:8080", "127.0.0.1:80x", "[::1:80", "[::1]80", ""):
            with self.subTest(address=address):
                self.assert_refused(("echo", "--listen", address), USAGE, *([address] if address else []))

    def test_unknown_backend(self):
        for command in (("echo", "--listen", "127.0.0.1:0"), ("trace", "--bytes", "1")):
            with self.subTest(command=command[0]):
                self.assert_refused((*command, "--backend", "kqueue"), USAGE, "kqueue", "epoll", "epoll-et")

    def test_unknown_backend_in_the_environment(self):
        for command in (("echo", "--listen", "127.0.0.1:0"), ("trace", "--bytes", "1"),
                        ("echo", "--listen", "127.0.0.1:0", "--backend", "auto")):
            with self.subTest(command=command):
                self.assert_refused(command, USAGE, "kqueue", "epoll-et", "PENSTOCK_BACKEND",
                                    env=environment(PENSTOCK_BACKEND="kqueue"))

    def test_more_connections_than_descriptors(self):
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        command = ("echo", "--listen", "127.0.0.1:0", "--max-connections")
        self.assert_refused((*command, soft + 1), USAGE, str(soft + 1))
        self.assert_refused((*command, 100), USAGE, "100", nofile=64)

    def test_bad_option_values(self):
        for option, value in (("--loops", "many"), ("--loops", "-1"), ("--loops", "99999999999999999999"),
                              ("--loops", "1.5"), ("--loops", ""),
                              ("--high-water", "wet"), ("--high-water", "64Kib64"), ("--high-water", "-1"),
                              ("--high-water", "99999999999999999999"), ("--high-water", "99999999999GiB"),
                              ("--high-water", "64XiB"),
                              ("--max-connections", "all"), ("--max-connections", "-5"), ("--max-connections", "12z"),
                              ("--connections-per-source", "few"), ("--connections-per-source", "-1"),
                              ("--connections-per-source", "99999999999999999999"),
                              ("--accept-rate", "fast"), ("--accept-rate", "-1"), ("--accept-rate", "0.5"),
                              ("--balance", "fair"), ("--balance", "0"), ("--balance", ""),
                              ("--idle-timeout", "never"), ("--idle-timeout", "5parsecs"), ("--idle-timeout", "-1s"),
                              ("--stop-deadline", "soon"), ("--stop-deadline", "99999999999999999999s"),
                              ("--log-level", "shouting")):
            with self.subTest(option=option, value=value):
                result = run_to_end(self, "echo", "--listen", "127.0.0.1:0", option, value)
                self.assertEqual(result.status, USAGE, result.errors)
                self.assert_one_clear_line(result, option)

    def test_unknown_options_left_over_words_and_missing_values(self):
        for arguments in (("--no-such-option",), ("--loops",), ("left", "over"), ("-z",)):
            with self.subTest(arguments=arguments):
                result = run_to_end(self, "echo", "--listen", "127.0.0.1:0", *arguments)
                self.assertEqual(result.status, USAGE, result.errors)
                self.assert_one_clear_line(result, arguments[0])

    def test_bad_trace_values(self):
        for option, value in (("--bytes", "lots"), ("--bytes", "-1"), ("--bytes", "99999999999999999999"),
                              ("--receive-buffer", "x"), ("--reader-rate", "fast"), ("--no-such-option", "1")):
            with self.subTest(option=option, value=value):
                result = run_to_end(self, "trace", option, value)
                self.assertEqual(result.status, USAGE, result.errors)
                self.assert_one_clear_line(result, option)


@support.each_backend
class CannotListen(CommandLineCase):
    """What only the kernel knows exits with 1."""

    def test_a_port_somebody_else_has(self):
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            port = str(holder.getsockname()[1])
            self.assert_refused(("echo", "--listen", f"127.0.0.1:{port}", "--backend", self.backend), FAILURE, port)

    def test_a_port_another_penstock_has_which_goes_on_serving(self):
        server = self.server()
        port = str(server.port)
        self.assert_refused(("echo", "--listen", f"127.0.0.1:{port}", "--backend", self.backend), FAILURE, port)
        self.assert_refused(("echo", "--listen", f"127.0.0.1:{port}", "--backend", self.backend, "--loops", "2"),
                            FAILURE, port)
        self.assert_echoes(server)
        self.finish(server)

    def test_a_port_that_is_forbidden(self):
        first_free = int(pathlib.Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
        if first_free <= 1:
            self.skipTest("this system forbids no port")
        self.assert_refused(("echo", "--listen", "127.0.0.1:1", "--backend", self.backend), FAILURE, "127.0.0.1:1",
                            forbid_low_ports=True)

    def test_an_address_that_is_not_of_this_machine(self):
        # 203.0.113.0/24 is set aside for documentation (RFC 5737).
        self.assert_refused(("echo", "--listen", "203.0.113.1:0", "--backend", self.backend), FAILURE, "203.0.113.1")


class BackendChoice(CommandLineCase):
    """--backend and PENSTOCK_BACKEND."""

    def name_of(self, *options, variable=None):
        """The backend a server says it uses."""
        server = support.Server(self, *options, env=environment(PENSTOCK_BACKEND=variable))
        self.finish(server)
        return server.backend

    def test_without_either_epoll_is_chosen(self):
        self.assertEqual(self.name_of(), "epoll")
        self.assertEqual(self.name_of("--backend", "auto"), "epoll")

    def test_the_variable_chooses_where_the_option_does_not(self):
        for name in support.BACKENDS:
            with self.subTest(backend=name):
                self.assertEqual(self.name_of(variable=name), name)
                self.assertEqual(self.name_of("--backend", "auto", variable=name), name)
        self.assertEqual(self.name_of(variable="auto"), "epoll")

    def test_the_option_beats_the_variable(self):
        for chosen, variable in (("epoll", "epoll-et"), ("epoll-et", "epoll"), ("epoll-et", "auto"),
                                 ("epoll", "kqueue")):
            with self.subTest(option=chosen, variable=variable):
                self.assertEqual(self.name_of("--backend", chosen, variable=variable), chosen)

    def test_the_variable_counts_for_trace_too(self):
        for name in support.BACKENDS:
            result = run_to_end(self, "trace", "--bytes", "1000", "--json", env=environment(PENSTOCK_BACKEND=name))
            self.assertEqual(result.status, 0, result.errors)
            self.assertEqual(json.loads(result.output.splitlines()[-1])["event"], "summary")


@support.each_backend
class Listening(CommandLineCase):
    """Addresses, options and output of a server that runs."""

    def test_port_zero_gives_a_port_that_is_printed_and_differs_between_two(self):
        first, second = self.server(), self.server()
        self.assertNotEqual(first.port, 0)
        self.assertNotEqual(first.port, second.port)
        self.assert_echoes(first)
        self.assert_echoes(second)
        self.finish(first)
        self.finish(second)

    def test_ipv6(self):
        try:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind(("::1", 0))
        except OSError as error:
            self.skipTest(f"no IPv6 here: {error}")
        server = self.server(listen="[::1]:0")
        self.assertEqual(server.host, "::1")
        self.assert_echoes(server)
        self.finish(server)

    def test_every_way_to_write_sizes_and_durations(self):
        for options in (("--high-water", "65536"), ("--high-water", "64KiB"), ("--high-water", "1MiB"),
                        ("--idle-timeout", "30s"), ("--idle-timeout", "500ms"), ("--idle-timeout", "2m"),
                        ("--idle-timeout", "0"), ("--stop-deadline", "1m"), ("--loops", "0"), ("--loops", "3"),
                        ("--max-connections", "7"), ("--connections-per-source", "1"), ("--accept-rate", "100"),
                        ("--balance", "least-connections"), ("--balance", "round-robin"), ("--balance", "peer-hash"),
                        ("--log-level", "debug"), ("--log-level", "error")):
            with self.subTest(options=options):
                server = self.server(*options)
                self.assert_echoes(server)
                self.finish(server)

    def test_two_lines_on_stdout_and_no_complaint_on_stderr(self):
        server = self.server()
        self.assert_echoes(server)
        self.assertEqual(len(self.finish(server)), 1, "the summary and nothing else")
        self.assertNotRegex(server.errors, r"(?i)\b(error|warn(ing)?|fatal)\b")
        self.assertNotIn("\x1b", server.output + server.errors, "no escape codes into a file")

    def test_clients_on_the_loopback_are_not_limited_by_their_source(self):
        server = self.server("--connections-per-source", 1)
        with support.connect(server.address) as first, support.connect(server.address) as second:
            for sock in (first, second):
                sock.sendall(b"hello")
                self.assertEqual(support.receive_exactly(sock, 5), b"hello")
        self.assertRegex(self.finish(server)[0], r"served 2 connections, refused 0,")

    def test_further_loops_are_as_many_further_threads(self):
        threads = {}
        for loops in (0, 3):
            server = self.server("--loops", loops)
            threads[loops] = len(os.listdir(f"/proc/{server.pid}/task"))
            self.finish(server)
        # The thread sanitizer starts a thread of its own with the first further one.
        self.assertIn(threads[3] - threads[0], (3,) if support.SANITIZER != "thread" else (3, 4))


@support.each_backend
class StandardStreams(CommandLineCase):
    """A server whose output nobody takes."""

    def blind_server(self, stdout, **preparation):
        """A server whose first line cannot be read: on a port chosen here, running once it accepts."""
        port = support.free_port(self.random)
        command = [support.BINARY, "echo", "--listen", f"127.0.0.1:{port}", "--backend", self.backend]
        child = support.Child(self, command, stdout=stdout, **preparation)

        def accepts():
            if child.process.poll() is not None:
                return True
            try:
                support.connect(("127.0.0.1", port)).close()
                return True
            except ConnectionRefusedError:
                return False

        self.eventually(accepts, "it listens, or ends")
        return child, ("127.0.0.1", port)

    def check_serves_or_says_why_not(self, child, address):
        if child.process.poll() is not None:
            self.assertEqual(child.process.returncode, FAILURE, "it may refuse to run, but does not die of a signal")
            self.assertTrue(child.errors.strip(), "and says why")
            return
        with support.connect(address) as sock:
            sock.sendall(b"hello")
            self.assertEqual(support.receive_exactly(sock, 5), b"hello", "only what the client sent")
            child.signal(signal.SIGTERM)
            self.assertEqual(sock.recv(1000), b"", "nothing meant for stdout goes to a client")
        self.assertIn(child.wait("SIGTERM"), (0, FAILURE), "it ends by itself, not of a signal")

    def test_a_pipe_nobody_reads_from(self):
        reading, writing = os.pipe()
        os.close(reading)
        try:
            child, address = self.blind_server(writing)
        finally:
            os.close(writing)
        self.check_serves_or_says_why_not(child, address)

    def test_closed_standard_streams(self):
        for close in ((1,), (0, 1), (0, 1, 2)):
            with self.subTest(closed=close):
                child, address = self.blind_server(subprocess.DEVNULL, close=close)
                if 2 in close and child.process.poll() is not None:
                    self.assertEqual(child.process.returncode, FAILURE)
                    continue
                self.check_serves_or_says_why_not(child, address)

    def test_a_full_device(self):
        with open("/dev/full", "wb") as full:
            child, address = self.blind_server(full)
        self.check_serves_or_says_why_not(child, address)

    def test_a_reader_that_leaves_after_the_first_line(self):
        reading, writing = os.pipe()
        child = support.Child(self, [support.BINARY, "echo", "--listen", "127.0.0.1:0", "--backend", self.backend],
                              stdout=writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as output:
            match = support.LISTENING.match(output.readline().decode().rstrip("\n"))
        self.assertTrue(match)
        self.check_serves_or_says_why_not(child, (match.group(1), int(match.group(2))))


if __name__ == "__main__":
    support.main()
