"""--idle-timeout of `penstock echo`: who says nothing is closed, who talks is not."""

import signal
import time

import support

PACE = 0.1  # seconds between the words of a client that keeps talking


@support.each_backend
class Idle(support.TestCase):
    """A timeout of one second, except where said."""

    def test_an_idle_client_is_closed_and_one_that_keeps_talking_is_not(self):
        for _ in range(3):
            if self.talker_outlives_idle_client():
                return
        self.fail("in three tries this process never came to run often enough to keep talking")

    def talker_outlives_idle_client(self):
        """False when this process itself was held up for so long that its talker had to be taken for idle."""
        server = self.server("--idle-timeout", "1s")
        idle, talker = self.client(server), self.client(server)
        began = last = time.monotonic()
        longest, idle_open = 0.0, True
        while idle_open or time.monotonic() < began + 3:
            self.assertLess(time.monotonic(), began + support.SOON, "the idle client is closed")
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
            try:
                talker.sendall(b"word")
                echoed = support.receive_exactly(talker, 4)
            except OSError:
                echoed = b""
            if echoed != b"word":
                self.assertGreater(max(longest, time.monotonic() - last), 0.5, "the client that talked was closed")
                self.finish(server)
                return False
            if idle_open:
                idle_open = not self.ended_within_a_pace(idle)
            else:
                time.sleep(PACE)
        self.finish(server)
        return True

    def ended_within_a_pace(self, sock):
        sock.settimeout(PACE)
        try:
            self.assertEqual(sock.recv(1), b"")
            return True
        except TimeoutError:
            return False

    def test_a_client_that_has_spoken_and_then_falls_silent_is_closed_with_a_clean_end(self):
        server = self.server("--idle-timeout", "1s", "--loops", 2)
        sock = self.client(server)
        sock.sendall(b"last words")
        self.assertEqual(support.receive_to_end(sock), b"last words")
        self.finish(server)

    def test_zero_means_never(self):
        limited, unlimited = self.server("--idle-timeout", "1s"), self.server("--idle-timeout", "0")
        patient, impatient = self.client(unlimited), self.client(limited)
        self.assertEqual(impatient.recv(1), b"", "the limited server closes its client")
        patient.sendall(b"here")
        self.assertEqual(support.receive_exactly(patient, 4), b"here", "the unlimited server has kept its own")
        self.finish(limited)
        self.finish(unlimited)

    def test_closed_idle_clients_leave_no_descriptors(self):
        server = self.server("--idle-timeout", "1s")
        self.assert_echoes(server)
        self.eventually(lambda: not [found for found in support.kernel_sockets(server.port) if found.state in
                                      (support.ESTABLISHED, support.CLOSE_WAIT)],
                        "the first connection is closed")
        before = len(server.descriptors())
        sockets = [self.client(server) for _ in range(100)]
        for sock in sockets:
            self.assertEqual(sock.recv(1), b"")
            sock.close()
        self.eventually(lambda: len(server.descriptors()) <= before, "their descriptors are closed")
        self.finish(server)

    def test_what_arrived_while_the_server_was_stopped_is_read_before_its_sender_is_judged_idle(self):
        server = self.server("--idle-timeout", "2s")
        sock = self.client(server)
        sock.sendall(b"before")
        self.assertEqual(support.receive_exactly(sock, 6), b"before")
        server.signal(signal.SIGSTOP)
        try:
            self.eventually(lambda: self.state(server) == "T", "the server is stopped")
            sock.sendall(b"meanwhile")
            passed = time.monotonic() + 2.5
            self.eventually(lambda: time.monotonic() > passed, "the idle time passes")
        finally:
            server.signal(signal.SIGCONT)
        self.assertEqual(support.receive_exactly(sock, 9), b"meanwhile")
        self.finish(server)

    def state(self, server):
        with open(f"/proc/{server.pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0]


if __name__ == "__main__":
    support.main()
