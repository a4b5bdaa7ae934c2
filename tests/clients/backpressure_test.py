"""What a client that does not read costs `penstock echo`: a little memory, no time, and nobody else's service."""

import support
from support import KIB, LATE, MIB

OFFERED = 512 * MIB

# What one client that never reads may add to the server. A sanitizer keeps freed memory back and pads what is in use,
# so there the bound only tells a bounded queue from one that grows with what is offered.
ADDED = 4 * MIB if support.SANITIZER is None else 48 * MIB


class NeverReadingBody:
    """A client that offers up to 512 MiB and never reads."""

    options = ()

    def test_memory_stays_bounded_the_processor_rests_and_all_comes_back_in_the_end(self):
        server = self.server(*self.options)
        self.assert_echoes(server, self.bytes_of(64 * KIB))
        before = server.resident()
        sock = self.client(server)
        chunk = self.bytes_of(MIB)
        (sent,) = support.push_until_stalled([sock], OFFERED, chunk)
        self.evidence.append(lambda: f"--- the client could send {sent} bytes")
        self.assertLess(sent, OFFERED // 4, "the server stopped reading: there are the kernel's buffers and its own")
        self.assertGreater(sent, 256 * KIB, "and not before its high-water mark")
        self.assertLess(server.resident() - before, ADDED, "bytes of memory one client that never reads has added")
        self.assert_at_rest(server, "one client stalled")
        self.assertLess(server.resident() - before, ADDED, "bytes of memory added, after a second of rest")
        self.assert_echoes(server)
        support.drain(self, sock, chunk, sent)
        self.finish(server)


@support.each_backend
class NeverReading(NeverReadingBody, support.TestCase):
    """On one loop."""


@support.each_backend
class NeverReadingOnTwoLoops(NeverReadingBody, support.TestCase):
    """On the loops beside the accepting one."""

    options = ("--loops", 2)


@support.each_backend
class ManyNeverReading(support.TestCase):
    """The bound is for each connection."""

    def test_forty_stalled_clients_at_a_small_high_water_mark_stay_small_together(self):
        count, mark = 40, 64 * KIB
        server = self.server("--high-water", mark)
        self.assert_echoes(server, self.bytes_of(65536))
        before = server.resident()
        sockets = [self.client(server, small=True) for _ in range(count)]
        sent = support.push_until_stalled(sockets, OFFERED, self.bytes_of(64 * KIB))
        self.assertGreater(min(sent), mark, "each client went beyond the mark")
        self.assertLess(max(sent), 32 * MIB, "and was stopped")
        # The mark, one read beyond it, and as much again for the way a buffer grows.
        allowed = count * 2 * (mark + 64 * KIB) + (0 if support.SANITIZER is None else ADDED)
        self.assertLess(server.resident() - before, allowed, f"bytes of memory {count} stalled clients have added")
        self.assert_at_rest(server, f"{count} clients stalled")
        self.assert_echoes(server)

    def test_forty_paused_clients_all_get_everything_once_they_read(self):
        server = self.server("--high-water", "64KiB")
        chunk = self.bytes_of(64 * KIB)
        sockets = [self.client(server, small=True) for _ in range(40)]
        sent = support.push_until_stalled(sockets, OFFERED, chunk)
        order = list(range(len(sockets)))
        self.random.shuffle(order)
        for index in order:
            with self.subTest(client=index):
                support.drain(self, sockets[index], chunk, sent[index])
        self.finish(server)


if __name__ == "__main__":
    support.main()
