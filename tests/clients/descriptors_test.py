"""`penstock echo` at the end of its descriptors: it rests, serves whom it has, and the next at once when it can."""

import resource
import signal
import unittest

import support

# Without descriptors the server may look again every few tens of milliseconds: 10 ms growing to 50 ms is the policy.
SWITCHES_WHILE_RETRYING = 90 + support.SWITCHES_AT_REST

LINES_A_SECOND = 10  # of one kind in the log; the windows below last a few seconds


def limit_descriptors(server, number):
    """Sets the soft limit of the running server; gives the former one back."""
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (number, hard))
    return soft


@support.each_backend
class DefaultLimit(support.TestCase):
    """200 clients, 64 descriptors: the default of --max-connections, nine tenths of what is free at the start, keeps
    the server off the edge. Clients beyond it wait in the kernel's queue."""

    def full_server(self, count=200):
        server = self.server(nofile=64)
        open_at_start = len(server.descriptors())
        crowd = support.Crowd(self, server, count)
        crowd.until(lambda: len(crowd.served) >= 30, "the first clients are served")
        crowd.settle()
        self.limit = len(crowd.served)
        # "Open at start" may be counted a little before or after the listener and the loop exist.
        self.assertLessEqual(self.limit, int(0.9 * (64 - 3)))
        self.assertGreaterEqual(self.limit, int(0.9 * (64 - open_at_start)) - 2)
        self.assertEqual(crowd.served, set(range(self.limit)), "those who came first are served")
        self.assertEqual(crowd.gone, set(), "nobody is turned away")
        return server, crowd

    def test_two_hundred_clients_leave_the_server_idle_and_are_all_served_as_others_leave(self):
        server, crowd = self.full_server()
        self.assert_at_rest(server, "200 clients at a limit of 64 descriptors")
        crowd.pump()
        self.assertEqual(len(crowd.served), self.limit, "no more than the limit, and nobody has been dropped")
        crowd.leave(sorted(crowd.served)[:10])
        crowd.until(lambda: len(crowd.served) >= self.limit, "ten who waited are served as soon as ten have left")
        self.assert_at_rest(server, "full again")
        while crowd.waiting:
            have = len(crowd.ever_served)
            crowd.leave(list(crowd.served))
            expected = min(200, have + self.limit)
            crowd.until(lambda: len(crowd.ever_served) >= expected, "the next are served")
            self.assertLessEqual(len(crowd.served), self.limit)
        self.assertEqual(len(crowd.ever_served), 200, "all were served in the end")
        self.assertEqual(crowd.gone, set(), "and nobody was turned away")
        self.assert_echoes(server)
        self.finish(server)

    def test_a_single_place_that_comes_free_is_given_to_a_waiting_client(self):
        server, crowd = self.full_server(count=80)
        for _ in range(5):
            crowd.leave([max(crowd.served)])
            crowd.until(lambda: len(crowd.served) >= self.limit, "one who waited is served when one has left")
        self.finish(server)

    def test_waiting_clients_that_reset_before_they_are_accepted_do_no_harm(self):
        server, crowd = self.full_server()
        waiting = sorted(crowd.waiting)
        crowd.leave(waiting[:-20], support.reset)
        crowd.leave(list(crowd.served))
        crowd.until(lambda: len(crowd.served) == 20, "those who stayed are served")
        self.assertEqual(crowd.gone, set())
        crowd.leave(list(crowd.served))
        self.assert_echoes(server)
        self.finish(server)

    def test_a_full_server_with_clients_waiting_stops_when_told(self):
        server, crowd = self.full_server()
        served = list(crowd.served)
        server.signal(signal.SIGTERM)
        crowd.until(lambda: crowd.gone.issuperset(served), "connections end")
        crowd.leave(range(200))
        self.assertEqual(server.wait("SIGTERM while clients wait"), 0)


@support.each_backend
class NoDescriptors(support.TestCase):
    """accept() itself fails with EMFILE: the limit of the running server is lowered behind its back. Whoever waits may
    be turned away or served later, but is never left hanging once there are descriptors again."""

    def check_rest_then_recovery(self, server, crowd, served, recover, options_text):
        lines = server.errors.count("\n")
        self.assert_at_rest(server, options_text, switches=SWITCHES_WHILE_RETRYING)
        crowd.pump()
        self.assertLess(server.errors.count("\n") - lines, 10 * LINES_A_SECOND, "the log is not flooded")
        for index in served:
            self.assertIn(index, crowd.served, "those who were connected stay connected")
            crowd.sockets[index].send(b"!")
            crowd.tokens[index] += b"!"
        crowd.until(lambda: all(crowd.received[index] == crowd.tokens[index] for index in served),
                    "those who were connected are served as before")
        recover()
        crowd.until(lambda: not crowd.waiting, "nobody is left hanging: each waiting client is served or turned away")
        fresh = crowd.add(server)
        crowd.until(lambda: fresh in crowd.served, "a new client is served")
        self.assert_at_rest(server, "after recovery")

    def test_below_what_is_open_the_server_rests_and_recovers_when_the_limit_is_lifted(self):
        server = self.server()
        crowd = support.Crowd(self, server, 5)
        crowd.until(lambda: len(crowd.served) == 5, "five are served")
        former = limit_descriptors(server, 4)
        self.assertGreater(len(server.descriptors()), 4)
        for _ in range(30):
            crowd.add(server)
        self.check_rest_then_recovery(server, crowd, range(5), lambda: limit_descriptors(server, former),
                                      "30 clients while accept cannot succeed")
        crowd.leave(range(5))
        self.finish(server)

    def test_just_above_what_is_open_the_server_rests_and_recovers_when_clients_leave(self):
        server = self.server()
        crowd = support.Crowd(self, server, 5)
        crowd.until(lambda: len(crowd.served) == 5, "five are served")
        limit_descriptors(server, max(server.descriptors()) + 1 + 4)
        for _ in range(40):
            crowd.add(server)
        crowd.until(lambda: len(crowd.served) >= 9, "the four descriptors there are go to clients")

        def leave():
            while crowd.waiting:
                leaving = list(crowd.served)
                crowd.leave(leaving)
                crowd.until(lambda: crowd.served or not crowd.waiting, "the next are served or turned away")
            crowd.leave(list(crowd.served))

        self.check_rest_then_recovery(server, crowd, range(5), leave, "40 clients, 4 descriptors")
        self.finish(server)

    def test_it_recovers_again_and_again(self):
        server = self.server("--loops", 2)
        crowd = support.Crowd(self, server, 3)
        crowd.until(lambda: len(crowd.served) == 3, "three are served")
        for _ in range(10):
            former = limit_descriptors(server, 4)
            for _ in range(5):
                crowd.add(server)
            crowd.pump(0.05)
            limit_descriptors(server, former)
            crowd.until(lambda: not crowd.waiting, "each waiting client is served or turned away")
            fresh = crowd.add(server)
            crowd.until(lambda: fresh in crowd.served, "a new client is served")
        self.assert_at_rest(server, "after ten recoveries", switches=2 * support.SWITCHES_AT_REST)
        crowd.leave(range(len(crowd.sockets)))
        self.finish(server)

    def test_a_server_without_descriptors_stops_when_told(self):
        server = self.server()
        crowd = support.Crowd(self, server, 3)
        crowd.until(lambda: len(crowd.served) == 3, "three are served")
        limit_descriptors(server, 4)
        for _ in range(10):
            crowd.add(server)
        crowd.pump(0.05)
        server.signal(signal.SIGTERM)
        crowd.until(lambda: crowd.gone.issuperset(range(3)), "the connections end")
        crowd.leave(range(len(crowd.sockets)))
        self.assertEqual(server.wait("SIGTERM without descriptors"), 0)


if __name__ == "__main__":
    support.main()
