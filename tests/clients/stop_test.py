"""How `penstock echo` ends: orderly on the first signal, flushing what is queued, at its deadline at the latest; at
once on the second."""

import hashlib
import signal
import socket
import threading

import support
from support import KIB, LATE, MIB


@support.each_backend
class Stop(support.TestCase):
    """SIGINT and SIGTERM."""

    def test_an_idle_server_ends_at_once_with_status_zero_and_a_summary(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            for loops in (0, 2):
                with self.subTest(signal=number.name, loops=loops):
                    server = self.server("--loops", loops)
                    summary = server.stop(number)
                    self.assertEqual(len(summary), 1, f"one summary line: {summary}")

    def test_the_summary_counts_the_connections(self):
        server = self.server()
        for _ in range(7):
            with support.connect(server.address) as sock:
                sock.sendall(b"hello")
                self.assertEqual(support.receive_exactly(sock, 5), b"hello")
        (summary,) = server.stop()
        self.assertRegex(summary, r"\b7\b", "seven connections were served")

    def test_connected_clients_get_a_clean_end_and_the_server_ends_with_them(self):
        server = self.server()
        sockets = [self.client(server) for _ in range(20)]
        for sock in sockets:
            sock.sendall(b"x")
            self.assertEqual(sock.recv(1), b"x")
        server.signal(signal.SIGTERM)
        for sock in sockets:
            self.assertEqual(sock.recv(1), b"", "the end of the stream, not a reset")
            sock.close()
        self.assertEqual(server.wait("all clients have gone"), 0)

    def test_clients_that_never_answer_the_end_do_not_hold_the_server_beyond_its_deadline(self):
        server = self.server("--stop-deadline", "2s")
        sockets = [self.client(server) for _ in range(20)]
        for sock in sockets:
            sock.sendall(b"x")
            self.assertEqual(sock.recv(1), b"x")
        server.stop()
        for sock in sockets:
            self.assertEqual(support.receive_until_over(sock)[0], b"")

    def test_what_is_queued_is_flushed_to_a_reader_that_begins_after_the_signal(self):
        size = 6 * MIB
        for half_close in (False, True):
            with self.subTest(half_close=half_close):
                # A high mark above the size: the server takes all of it, and what the kernel does not take it queues.
                server = self.server("--high-water", "8MiB", "--stop-deadline", "120s")
                sock = self.client(server, small=True, timeout=LATE)
                data = self.bytes_of(size)
                support.queue_in_server(self, server, sock, data,
                                        (lambda: sock.shutdown(socket.SHUT_WR)) if half_close else None)
                server.signal(signal.SIGTERM)
                self.eventually(server.refuses, "it stops accepting")
                self.assertIsNone(server.process.poll(), "it waits for the reader")
                self.assert_at_rest(server, "draining to a reader that has not begun")
                came, count = hashlib.sha256(), 0
                while chunk := sock.recv(16 * KIB):
                    came.update(chunk)
                    count += len(chunk)
                self.assertEqual(count, size, "bytes flushed before the end of the stream")
                self.assertEqual(came.digest(), hashlib.sha256(data).digest(), "and the right ones")
                sock.close()
                self.assertEqual(server.wait("all is flushed"), 0)

    def stalled(self, server, count=3):
        sockets = [self.client(server, small=True) for _ in range(count)]
        sent = support.push_until_stalled(sockets, 64 * MIB, self.bytes_of(64 * KIB))
        self.assertGreater(min(sent), 256 * KIB)
        self.assertLess(max(sent), 64 * MIB)
        return sockets

    def test_at_the_deadline_it_aborts_reports_and_ends_with_zero(self):
        server = self.server("--stop-deadline", "1s")
        sockets = self.stalled(server)
        server.signal(signal.SIGTERM)
        self.eventually(server.refuses, "it stops accepting")
        self.assertEqual(server.wait("the stop deadline of 1 s"), 0)
        said = server.output.split("\n", 1)[1] + server.errors
        self.assertRegex(said, r"(?i)abort|reset")
        self.assertRegex(said, r"\b3\b", "three connections were aborted")
        for sock in sockets:
            sock.settimeout(support.SOON)
            self.assertEqual(support.receive_until_over(sock)[1], "reset", "a cut stream does not look complete")

    def test_a_stream_cut_at_the_deadline_ends_in_a_reset_even_where_nothing_was_unread(self):
        server = self.server("--high-water", "8MiB", "--stop-deadline", "1s")
        sock = self.client(server, small=True, timeout=LATE)
        data = self.bytes_of(6 * MIB)
        support.queue_in_server(self, server, sock, data)
        server.stop()
        came, end = support.receive_until_over(sock)
        self.assertLess(len(came), len(data))
        self.assert_same_bytes(data[:len(came)], came, "the part that came")
        self.assertEqual(end, "reset", "a cut stream does not look complete")

    def test_a_second_signal_aborts_at_once_with_status_one_hundred_and_thirty(self):
        for first, second in ((signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT),
                              (signal.SIGTERM, signal.SIGINT)):
            with self.subTest(first=first.name, second=second.name):
                server = self.server("--stop-deadline", "10m")
                (sock,) = self.stalled(server, 1)
                server.signal(first)
                self.eventually(server.refuses, "it stops accepting")
                self.assertIsNone(server.process.poll(), "it is draining")
                server.signal(second)
                self.assertEqual(server.wait("a second signal"), 130)
                sock.settimeout(support.SOON)
                self.assertEqual(support.receive_until_over(sock)[1], "reset")

    def test_while_it_drains_a_client_that_ends_lets_it_end(self):
        server = self.server("--stop-deadline", "10m")
        (sock,) = self.stalled(server, 1)
        server.signal(signal.SIGTERM)
        self.eventually(server.refuses, "it stops accepting")
        support.reset(sock)
        self.assertEqual(server.wait("the last client has gone"), 0)

    def test_a_signal_under_a_stream_of_new_clients_ends_it_and_no_client_gets_wrong_bytes(self):
        server = self.server("--loops", 2)
        over = threading.Event()
        wrong, completed = [], [0] * 4

        def visit(worker):
            while not over.is_set():
                message = b"%d of %d" % (completed[worker], worker)
                try:
                    with support.connect(server.address) as sock:
                        if sock.getsockname() == sock.getpeername():
                            continue
                        sock.sendall(message)
                        reply = support.receive_exactly(sock, len(message))
                except OSError:
                    continue
                if reply == message:
                    completed[worker] += 1
                elif not message.startswith(reply):
                    wrong.append((message, reply))

        visitors = [threading.Thread(target=visit, args=(worker,), daemon=True) for worker in range(4)]
        for visitor in visitors:
            visitor.start()
        try:
            self.eventually(lambda: min(completed) >= 50, "every visitor is served", LATE)
            server.signal(signal.SIGTERM)
            self.assertEqual(server.wait("SIGTERM under load"), 0)
        finally:
            over.set()
            for visitor in visitors:
                visitor.join()
        self.assertEqual(wrong, [])

    def test_it_starts_on_the_same_port_twenty_times_while_old_connections_are_in_time_wait(self):
        port = support.free_port(self.random)
        for number in range(20):
            server = self.server(listen=f"127.0.0.1:{port}")
            self.assertEqual(server.port, port)
            sock = self.client(server)
            sock.sendall(b"x")
            self.assertEqual(sock.recv(1), b"x")
            server.signal(signal.SIGTERM)
            self.assertEqual(sock.recv(1), b"", "the server closes first")
            sock.close()
            self.assertEqual(server.wait("an idle server"), 0)
            waiting = [found for found in support.kernel_sockets(port) if found.state == support.TIME_WAIT]
            self.assertTrue(waiting, "the server's side is in TIME_WAIT, or this test shows nothing")


if __name__ == "__main__":
    support.main()
