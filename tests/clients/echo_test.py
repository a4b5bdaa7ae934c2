"""What clients get back from `penstock echo`: every byte, in order, once, and a clean end of the stream."""

import hashlib
import os
import shutil
import socket
import subprocess
import tempfile

import support
from support import KIB, LATE, MIB

LARGE = 64 * MIB


def large_payload(test):
    """64 MiB that cost little to make, in which no two 1 MiB pieces are alike."""
    piece = test.bytes_of(MIB)
    return b"".join(index.to_bytes(8, "little") + piece[8:] for index in range(LARGE // MIB))


@support.each_backend
class LargeEcho(support.TestCase):
    """64 MiB to a reader that starts late, with a half-close: the writer runs in a thread and stalls on the way."""

    def check(self, data, read, feeder):
        """Reads all from `read` once the feeder has stalled."""
        feeder.wait_stalled()
        began_at = feeder.sent
        hashed, count = hashlib.sha256(), 0
        while chunk := read(256 * KIB):
            hashed.update(chunk)
            count += len(chunk)
        feeder.join(LATE)
        self.assertIsNone(feeder.error)
        self.assertEqual(feeder.sent, LARGE)
        self.assertEqual(count, LARGE, "bytes back before the end of the stream")
        self.assertEqual(hashed.hexdigest(), hashlib.sha256(data).hexdigest(), "what came back is what was sent")
        self.assertLess(began_at, LARGE, "the reader really was late: the writer had to wait for it")

    def run_program(self, name, *arguments):
        if shutil.which(name) is None:
            self.skipTest(f"{name} is not installed")
        server = self.server()
        data = large_payload(self)
        command = [part.replace("HOST", server.host).replace("PORT", str(server.port)) for part in (name, *arguments)]
        errors = self.enterContext(tempfile.TemporaryFile())
        program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0,
                                   preexec_fn=support.prepare_child())
        self.addCleanup(self.end_program, program)
        feeder = support.Feeder(self, data, lambda piece: os.write(program.stdin.fileno(), piece), program.stdin.close)
        self.check(data, program.stdout.read, feeder)
        self.assertEqual(program.wait(support.SOON), 0, f"{name} is content with the end")
        errors.seek(0)
        self.assertEqual(errors.read(), b"", f"{name} has nothing to complain about")
        self.finish(server)

    def end_program(self, program):
        if program.poll() is None:
            program.kill()
        program.wait()
        program.stdout.close()

    def test_sixty_four_mebibytes_return_to_a_socket_that_reads_late(self):
        server = self.server()
        sock = self.client(server, timeout=LATE)
        data = large_payload(self)
        feeder = support.Feeder(self, data, sock.send, lambda: sock.shutdown(socket.SHUT_WR))
        self.check(data, sock.recv, feeder)
        self.finish(server)

    def test_sixty_four_mebibytes_return_to_socat_that_reads_late(self):
        self.run_program("socat", "-t", str(int(LATE)), "STDIO", "TCP4:HOST:PORT")

    def test_sixty_four_mebibytes_return_to_netcat_that_reads_late(self):
        self.run_program("nc", "-N", "HOST", "PORT")

    def test_sixty_four_mebibytes_return_from_a_server_with_two_further_loops(self):
        server = self.server("--loops", 2)
        sock = self.client(server, timeout=LATE)
        data = large_payload(self)
        feeder = support.Feeder(self, data, sock.send, lambda: sock.shutdown(socket.SHUT_WR))
        self.check(data, sock.recv, feeder)
        self.finish(server)


class SmallEchoBody:
    """Many clients and odd ways to send."""

    loops = 0

    def echo_server(self):
        return self.server("--loops", self.loops)

    def test_a_hundred_clients_one_after_the_other_are_served_and_leave_no_descriptor(self):
        server = self.echo_server()
        self.assert_echoes(server)
        self.eventually(lambda: not self.connected(server), "the first connection is closed")
        before = len(server.descriptors())
        for number in range(100):
            message = b"number %d" % number
            with support.connect(server.address) as sock:
                sock.sendall(message)
                self.assertEqual(support.receive_exactly(sock, len(message)), message)
        self.eventually(lambda: len(server.descriptors()) <= before, "the descriptors of closed clients are closed")
        self.finish(server)

    def connected(self, server):
        """The connections the server has not closed."""
        return [found for found in support.kernel_sockets(server.port)
                if found.state in (support.ESTABLISHED, support.CLOSE_WAIT)]

    def test_fifty_clients_at_once_with_random_sizes_and_pieces_get_their_own_bytes(self):
        server = self.echo_server()
        payloads = [self.bytes_of(self.random.choice((1, 100, 5000, 70000, 400000)) + self.random.randrange(5000))
                    for _ in range(50)]
        support.converse(self, server.address, payloads, self.random)
        self.finish(server)

    def test_requests_sent_without_waiting_for_replies_are_all_answered_in_order(self):
        server = self.echo_server()
        sock = self.client(server)
        requests = b"".join(b"request %d;" % number for number in range(20000))
        sock.sendall(requests[:100000])
        sock.sendall(requests[100000:])
        self.assert_same_bytes(requests, support.receive_exactly(sock, len(requests)), "replies")
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(sock.recv(1), b"", "and nothing more")
        self.finish(server)

    def test_a_sender_of_single_bytes_gets_them_all(self):
        server = self.echo_server()
        sock = self.client(server)
        data = self.bytes_of(3000)
        for index in range(len(data)):
            sock.send(data[index:index + 1])
        sock.shutdown(socket.SHUT_WR)
        self.assert_same_bytes(data, support.receive_to_end(sock), "bytes")
        self.finish(server)

    def test_a_conversation_of_single_bytes_goes_back_and_forth(self):
        server = self.echo_server()
        sock = self.client(server)
        for number in range(500):
            byte = bytes([number % 256])
            sock.send(byte)
            self.assertEqual(sock.recv(10), byte)
        self.finish(server)

    def test_data_and_end_of_stream_in_one_go_lose_nothing(self):
        server = self.echo_server()
        for size in (1, 1000, 65536, 65537, 1000000):
            with self.subTest(size=size):
                sock = self.client(server)
                data = self.bytes_of(size)
                feeder = support.Feeder(self, data, sock.send, lambda: sock.shutdown(socket.SHUT_WR))
                self.assert_same_bytes(data, support.receive_to_end(sock), "bytes")
                feeder.join()
        self.finish(server)

    def test_a_client_that_only_says_goodbye_gets_a_goodbye(self):
        server = self.echo_server()
        sock = self.client(server)
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(sock.recv(1), b"")
        self.finish(server)

    def test_clients_that_vanish_in_the_middle_hurt_nobody(self):
        server = self.echo_server()
        self.assert_echoes(server)
        self.eventually(lambda: not self.connected(server), "the first connection is closed")
        before = len(server.descriptors())
        patient = self.client(server)
        for number in range(200):
            sock = support.connect(server.address)
            sock.setblocking(False)
            try:
                sock.send(bytes(self.random.randrange(1, 100000)))
            except OSError:
                pass
            if number % 2:
                support.reset(sock)
            else:
                sock.close()  # with bytes unread on it, if the echo was quick: a reset as well
            if number % 10 == 0:
                patient.sendall(b"and me?")
                self.assertEqual(support.receive_exactly(patient, 7), b"and me?")
        self.eventually(lambda: len(server.descriptors()) <= before + 1, "only the patient client's descriptor is left")
        self.finish(server)


@support.every_backend
class SmallEcho(SmallEchoBody, support.TestCase):
    """One loop that does all."""

    def test_bytes_behind_an_urgent_byte_are_not_stranded(self):
        server = self.echo_server()
        sock = self.client(server)
        sock.sendall(b"abc")
        self.assertEqual(support.receive_exactly(sock, 3), b"abc")
        sock.send(b"!", socket.MSG_OOB)
        sock.sendall(b"def")
        came = support.receive_exactly(sock, 3)
        if came == b"!de":  # in line is right as well
            came = came[1:] + support.receive_exactly(sock, 1)
        self.assertEqual(came, b"def")
        self.assert_at_rest(server, "an urgent byte has passed")
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(sock.recv(1), b"")
        self.finish(server)

    def test_a_connected_client_that_says_nothing_costs_nothing(self):
        server = self.echo_server()
        sock = self.client(server)
        sock.sendall(b"x")
        self.assertEqual(sock.recv(1), b"x")
        self.assert_at_rest(server, "one silent client")
        self.finish(server)


@support.each_backend
class SmallEchoWithTwoLoops(SmallEchoBody, support.TestCase):
    """Two loops beside the one that accepts."""

    loops = 2


@support.each_backend
class ConnectionLimit(support.TestCase):
    """--max-connections."""

    def check_limit(self, *options):
        server = self.server("--max-connections", 10, *options)
        crowd = support.Crowd(self, server, 30)
        crowd.until(lambda: len(crowd.served) >= 10, "ten are served")
        self.assert_at_rest(server, "ten served, twenty waiting")
        crowd.pump()
        self.assertEqual(crowd.served, set(range(10)), "the ten that came first are served, no others")
        self.assertEqual(crowd.gone, set(), "nobody is turned away")
        while len(crowd.ever_served) < 30:
            have = len(crowd.ever_served)
            crowd.leave(list(crowd.served))
            crowd.until(lambda: len(crowd.ever_served) >= min(30, have + 10), "the next ten are served")
            self.assertLessEqual(len(crowd.served), 10, "never more than the limit")
        self.assertEqual(crowd.gone, set(), "nobody was turned away")
        self.finish(server)

    def test_of_thirty_clients_ten_are_served_and_the_others_when_these_leave(self):
        self.check_limit()

    def test_the_limit_holds_over_all_loops(self):
        self.check_limit("--loops", 2)


@support.every_backend
class OtherAddresses(support.TestCase):
    """Unix sockets, both families of IP, and listening sockets that somebody else has made."""

    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        self.path = os.path.join(self.folder, "socket")

    def check(self, address, size=300000):
        """All that is sent comes back, and then the end."""
        with support.connect(address) as sock:
            data = self.bytes_of(size)
            feeder = support.Feeder(self, data, sock.send, lambda: sock.shutdown(socket.SHUT_WR))
            self.assert_same_bytes(data, support.receive_to_end(sock), "bytes")
            feeder.join()

    def listener(self, family, address):
        """A listening socket of this process: blocking, as inetd and systemd make them."""
        made = self.enterContext(socket.socket(family, socket.SOCK_STREAM))
        made.bind(address)
        made.listen()
        return made

    def inheriting(self, fd):
        return self.server(listen=f"fd:{fd}", pass_fds=(fd,))

    def refused(self, listen, status, *words, **arguments):
        result = support.run_to_end(self, "echo", "--listen", listen, "--backend", self.backend, **arguments)
        self.assertEqual(result.status, status, result.errors)
        self.assertEqual(len(result.error_lines), 1, f"one line on stderr: {result.errors!r}")
        for word in words:
            self.assertIn(word, result.errors)

    def test_a_unix_path_is_served_and_removed_at_the_end(self):
        for loops in (0, 2):
            with self.subTest(loops=loops):
                server = self.server("--loops", loops, listen="unix:" + self.path)
                self.assertEqual(server.path, self.path)
                for _ in range(5):
                    self.check(server.address)
                self.finish(server)
                self.assertEqual(os.listdir(self.folder), [])

    def test_an_abstract_name_is_served_and_leaves_no_file(self):
        name = f"@penstock-echo-test-{os.getpid()}-{self.backend}"
        server = self.server(listen="unix:" + name)
        self.assertEqual(server.path, name)
        self.check(server.address)
        self.finish(server)
        with self.assertRaises(ConnectionRefusedError):
            support.connect(server.address).close()

    def test_a_killed_servers_path_is_taken_over_and_a_live_ones_is_not(self):
        first = self.server(listen="unix:" + self.path)
        self.refused("unix:" + self.path, 1, self.path)
        self.check(first.address)
        first.kill()
        self.assertEqual(os.listdir(self.folder), ["socket"])
        second = self.server(listen="unix:" + self.path)
        self.check(second.address)
        self.finish(second)
        self.assertEqual(os.listdir(self.folder), [])

    def test_a_file_in_the_way_is_left(self):
        with open(self.path, "w", encoding="utf-8") as file:
            file.write("precious")
        self.refused("unix:" + self.path, 1, self.path)
        with open(self.path, encoding="utf-8") as file:
            self.assertEqual(file.read(), "precious")

    def test_an_inherited_tcp_listener_is_served(self):
        listener = self.listener(socket.AF_INET, ("127.0.0.1", 0))
        server = self.inheriting(listener.fileno())
        self.assertEqual(server.address, listener.getsockname())
        self.check(server.address)
        self.finish(server)

    def test_an_inherited_unix_listener_is_served_and_its_path_left(self):
        listener = self.listener(socket.AF_UNIX, self.path)
        server = self.inheriting(listener.fileno())
        self.assertEqual(server.path, self.path)
        self.check(server.address)
        self.finish(server)
        self.assertEqual(os.listdir(self.folder), ["socket"])
        again = self.inheriting(listener.fileno())
        self.check(again.address)
        self.finish(again)

    def test_what_is_no_listener_is_refused_in_words_even_the_standard_streams(self):
        with socket.socket() as unbound, socket.socketpair()[0] as connected:
            for fd in (0, 1, 2, unbound.fileno(), connected.fileno()):
                with self.subTest(fd=fd):
                    self.refused(f"fd:{fd}", 1, f"fd:{fd}", pass_fds=(fd,))
        self.refused("fd:987", 1, "fd:987", "inherited")
        for text in ("fd:", "fd:-1", "fd:x", "fd:3x", "fd:99999999999"):
            with self.subTest(text=text):
                self.refused(text, 2, text)

    def test_the_ipv6_wildcard_serves_both_families_unless_told_otherwise(self):
        server = self.server(listen="[::]:0")
        self.check(("::1", server.port))
        self.check(("127.0.0.1", server.port))
        self.finish(server)
        server = self.server("--ipv6-only", listen="[::]:0")
        self.check(("::1", server.port))
        with self.assertRaises(ConnectionRefusedError):
            support.connect(("127.0.0.1", server.port)).close()
        self.finish(server)


if __name__ == "__main__":
    support.main()
