"""What `penstock echo` does with connections it does not read for the time being, when these end or are reset."""

import signal
import socket

import support
from support import KIB, LATE, MIB


@support.each_backend
class PausedConnections(support.TestCase):
    """Connections whose reading the server has paused, because its output to them does not move, and what then happens
    to them: the end of a stream or a reset cannot be read while paused, and must not wake the loop over and over."""

    count = 100

    def paused(self, server, count):
        """That many connections, each with the server's output queue at its mark."""
        sockets = [self.client(server, small=True) for _ in range(count)]
        sent = support.push_until_stalled(sockets, 64 * MIB, self.bytes_of(64 * KIB))
        self.assertGreater(min(sent), 256 * KIB, "every connection is past the high-water mark")
        self.assertLess(max(sent), 64 * MIB, "and paused")
        return sockets

    def paused_with_all_arrived(self, server, count):
        """The same, but so that the end of a stream reaches the server behind the bytes it leaves unread."""
        sockets = [self.client(server, small=True) for _ in range(count)]
        sent = support.push_until_paused(self, server, sockets, self.bytes_of(64 * KIB))
        self.assertGreater(min(sent), 256 * KIB, "every connection is past the high-water mark")
        return sockets

    def assert_ends_arrived_unread(self, server, sockets):
        ports = {sock.getsockname()[1] for sock in sockets}
        behind = lambda: sum(found.state == support.CLOSE_WAIT and found.unread > 0 and found.remote_port in ports
                             for found in support.kernel_sockets(server.port))
        self.eventually(lambda: behind() == len(sockets), "the ends of the streams arrive behind unread bytes")

    def test_resets_half_closes_and_stalls_behind_unread_data_cause_no_wake_ups_and_do_not_outlive_the_deadline(self):
        server = self.server("--stop-deadline", "2s")
        self.assert_echoes(server)
        before = len(server.descriptors())
        half_closed = self.paused_with_all_arrived(server, self.count)
        sockets = self.paused(server, self.count) + half_closed + self.paused(server, self.count)
        self.assert_at_rest(server, "300 paused connections")
        for sock in sockets[:self.count]:
            support.reset(sock)
        self.assert_at_rest(server, "100 of 300 paused connections reset")
        for sock in half_closed:
            sock.shutdown(socket.SHUT_WR)
        self.assert_ends_arrived_unread(server, half_closed)
        self.assert_at_rest(server, "100 reset, 100 half-closed, 100 stalled")
        self.assert_echoes(server)
        self.eventually(lambda: len(server.descriptors()) <= before + 2 * self.count,
                        "the 100 that were reset are closed")

        server.signal(signal.SIGTERM)
        # The default deadline and the limits for stalls and half-closes are 30 s: well before that it is this deadline.
        self.assertEqual(server.wait("after SIGTERM and a stop deadline of 2 s"), 0)
        said = server.output.split("\n", 1)[1] + server.errors
        self.assertRegex(said, r"(?i)abort|reset", "it reports that it aborted")
        self.assertRegex(said, rf"\b{2 * self.count}\b", "and how many")
        for sock in (half_closed[0], sockets[-1]):
            sock.settimeout(support.SOON)
            self.assertEqual(support.receive_until_over(sock)[1], "reset", "a cut stream does not look complete")

    def test_a_reset_of_some_paused_connections_leaves_the_others_alone(self):
        server = self.server("--loops", 2)
        sockets = self.paused(server, 20)
        for sock in sockets[::2]:
            support.reset(sock)
        self.assert_at_rest(server, "10 of 20 paused connections reset", switches=2 * support.SWITCHES_AT_REST)
        self.assert_echoes(server)
        for sock in sockets[1::2]:
            sock.settimeout(LATE)
            self.assertTrue(sock.recv(100), "the others still get their bytes")
            support.reset(sock)
        self.finish(server)

    def test_a_half_close_with_output_still_queued_loses_none_of_it(self):
        server = self.server("--high-water", "8MiB")
        sock = self.client(server, small=True, timeout=LATE)
        data = self.bytes_of(6 * MIB)
        support.queue_in_server(self, server, sock, data, lambda: sock.shutdown(socket.SHUT_WR))
        self.assert_at_rest(server, "the stream has ended, its echo waits for the reader")
        self.assert_same_bytes(data, support.receive_to_end(sock), "the echo")
        self.finish(server)

    def test_a_half_closed_paused_client_that_reads_after_all_gets_everything_and_the_end(self):
        server = self.server()
        chunk = self.bytes_of(64 * KIB)
        stalled, arrived = ([self.client(server, small=True) for _ in range(10)] for _ in range(2))
        sent = support.push_until_paused(self, server, arrived, chunk)
        sent += support.push_until_stalled(stalled, 64 * MIB, chunk)
        sockets = arrived + stalled
        for sock in sockets:
            sock.shutdown(socket.SHUT_WR)
        self.assert_ends_arrived_unread(server, arrived)
        self.assert_at_rest(server, "20 half-closed paused connections")
        for sock, count in zip(sockets, sent):
            support.drain(self, sock, chunk, count)
        self.finish(server)


if __name__ == "__main__":
    support.main()
