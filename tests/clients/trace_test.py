"""`penstock trace`: one large transfer to a slow reader, told event by event. The story must add up."""

import json

import support
from support import KIB, MIB, run_to_end


def number(event, *names):
    """The first of these fields that is a number, or 0."""
    for name in names:
        if isinstance(event.get(name), (int, float)):
            return event[name]
    return 0


@support.every_backend
class Trace(support.TestCase):
    """Each test is one run."""

    def trace(self, *options):
        result = run_to_end(self, "trace", "--backend", self.backend, *options, seconds=support.LATE)
        self.assertEqual(result.status, 0, result.errors)
        self.assertNotIn("\x1b", result.output + result.errors, "no escape codes where there is no terminal")
        return result

    def events(self, *options):
        """The events of a --json run, the summary last."""
        lines = self.trace("--json", *options).output.splitlines()
        events = []
        for index, line in enumerate(lines):
            try:
                event = json.loads(line)
            except ValueError as error:
                self.fail(f"line {index + 1} is not JSON: {line!r}: {error}")
            self.assertIsInstance(event, dict)
            self.assertIsInstance(event.get("event"), str, f"every line names its event: {line}")
            events.append(event)
        self.assertTrue(events, "there is output")
        self.assertEqual(events[-1]["event"], "summary", "the last line is the summary")
        self.assertEqual([event["event"] for event in events].count("summary"), 1)
        return events

    def check(self, events, size, slow):
        """The whole story; slow: the reader is so slow that the kernel must refuse bytes."""
        *story, summary = events
        of = lambda kind: [event for event in story if event["event"] == kind]

        # The totals.
        self.assertEqual(summary["offered_bytes"], size)
        self.assertEqual(summary["received_bytes"], size)
        self.assertEqual(summary["offered_hash"], summary["received_hash"])
        self.assertTrue(summary["offered_hash"], "there is a hash")
        self.assertEqual(summary["arms"], summary["disarms"])
        self.assertEqual(summary["arms"], len(of("arm")))
        self.assertEqual(summary["disarms"], len(of("disarm")))

        # The writes.
        writes = of("write")
        accepted = [max(0, number(write, "accepted")) for write in writes]
        for write, taken in zip(writes, accepted):
            self.assertLessEqual(taken, write["requested"], write)
        self.assertEqual(sum(accepted), size, "what the kernel accepted is what was offered")
        short = sum(0 < taken < write["requested"] for write, taken in zip(writes, accepted))
        refused = sum(taken == 0 < write["requested"] for write, taken in zip(writes, accepted))
        self.assertIn(summary["partial_writes"], (short, short + refused))

        # The order.
        armed, over, above = False, False, False
        sent, percent, total = 0, 0.0, 0
        for event in story:
            kind = event["event"]
            if kind == "write":
                self.assertFalse(over, f"nothing is written after completion: {event}")
                total += max(0, number(event, "accepted"))
            elif kind == "arm":
                self.assertFalse(armed, "interest that is armed is not armed again")
                self.assertLess(total, size, "only what is left needs arming")
                armed = True
            elif kind == "disarm":
                self.assertTrue(armed, "a disarming follows an arming")
                if summary["arms"] == 1:
                    self.assertEqual(total, size, "disarmed only when the queue is empty")
                armed = False
            elif kind == "writable":
                self.assertTrue(armed, "writability is told only while armed: it never spins")
                self.assertGreaterEqual(event["sent_bytes"], sent, "bytes only grow")
                self.assertGreaterEqual(event["percent"], percent, "the percentage only grows")
                self.assertLessEqual(event["sent_bytes"], size)
                self.assertLessEqual(event["percent"], 100)
                self.assertAlmostEqual(event["percent"], 100 * event["sent_bytes"] / size, delta=1.0)
                sent, percent = event["sent_bytes"], event["percent"]
            elif kind == "high_water":
                self.assertFalse(above, "the high mark is told once on the way up")
                above = True
            elif kind == "low_water":
                self.assertTrue(above, "the low mark follows the high one")
                above = False
            elif kind == "complete":
                self.assertFalse(over, "completion is told once")
                self.assertEqual(total, size, "completion follows the last byte")
                over = True
        self.assertFalse(armed, "nothing stays armed")
        self.assertTrue(over, "completion is told")
        self.assertFalse(above, "the queue went below its low mark")
        if slow:
            self.assertTrue(of("arm"), "the reader was slow enough to need write interest")
            self.assertTrue(of("writable"))
            self.assertTrue(short + refused, "some write was cut short")
            self.assertTrue(of("high_water"), "a payload beyond the high mark crosses it")
            # One attempt in advance, and one for each writability with at most one more to learn that it was enough.
            self.assertLessEqual(len(writes), 2 * (len(of("writable")) + 1) + size // (16 * KIB), "it writes on events")
        return summary

    def test_ten_mebibytes_to_a_reader_with_a_small_buffer_add_up(self):
        self.check(self.events("--bytes", "10MiB", "--receive-buffer", "64KiB"), 10 * MIB, slow=True)

    def test_the_default_run_is_ten_mebibytes_and_adds_up(self):
        self.check(self.events(), 10 * MIB, slow=True)

    def test_a_reader_with_a_rate_adds_up(self):
        events = self.events("--bytes", "5MiB", "--receive-buffer", "32768", "--reader-rate", "4194304")
        self.check(events, 5 * MIB, slow=True)

    def test_odd_and_small_sizes_add_up(self):
        for size in (1, 1000, 65537, 1048577):
            with self.subTest(size=size):
                self.check(self.events("--bytes", size), size, slow=False)

    def test_the_same_bytes_have_the_same_hash_in_two_runs_of_one_size_and_others_differ(self):
        hashes = [self.events("--bytes", size)[-1]["offered_hash"] for size in (70000, 70000, 70001)]
        self.assertEqual(hashes[0], hashes[1])
        self.assertNotEqual(hashes[0], hashes[2])

    def test_the_text_tells_every_kind_of_event_and_a_summary(self):
        result = self.trace("--bytes", "10MiB", "--receive-buffer", "64KiB")
        lines = [line for line in result.output.splitlines() if line.strip()]
        self.assertGreater(len(lines), 5)
        text = result.output.lower()
        for told in ("write", "partial", r"\barm", "disarm", "writable|epollout", "%", "high", "low",
                     "complete|done|finished", "hash"):
            with self.subTest(told=told):
                self.assertRegex(text, told)
        self.assertRegex(result.output, r"10485760|10,485,760|10(\.0+)? MiB", "the size in bytes is told")


if __name__ == "__main__":
    support.main()
