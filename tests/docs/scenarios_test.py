"""docs/scenarios.md names tests that exist, and gives a reason where it names none."""

import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def rows():
    """(first column, tests, reason) of each scenario; of tables of another form the reason is None."""
    header = []
    for line in (ROOT / "docs" / "scenarios.md").read_text().splitlines():
        if not line.startswith("|"):
            header = []
            continue
        columns = [column.strip() for column in line.strip("|\n").split("|")]
        if not header:
            header = columns
        elif set(line) - set("|-: "):
            of_scenarios = header[0] == "id"
            yield columns[0], columns[2] if of_scenarios else line, columns[3] if of_scenarios else None


class ScenariosTest(unittest.TestCase):
    def test_every_test_it_names_exists(self):
        sources = "\n".join(path.read_text() for path in sorted((ROOT / "tests").glob("*/*.*")))
        known = set(re.findall(r"\b\w+\b", sources))
        named = [(scenario, name) for scenario, tests, _ in rows() for name in re.findall(r"`(?:\w+\.)?(\w{12,})`", tests)]
        self.assertGreater(len(named), 300)
        self.assertEqual([f"{scenario}: {name}" for scenario, name in named if name not in known], [])

    def test_a_scenario_without_a_test_has_a_reason(self):
        self.assertEqual([scenario for scenario, tests, reason in rows() if not tests and reason == ""], [])


if __name__ == "__main__":
    unittest.main()
