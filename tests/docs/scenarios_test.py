"""docs/scenarios.md names tests that exist."""

import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]


class ScenariosTest(unittest.TestCase):
    def test_every_test_it_names_exists(self):
        sources = "\n".join(path.read_text() for path in sorted((ROOT / "tests").glob("*/*_test.*")))
        known = set(re.findall(r"\b\w+\b", sources))
        named = []
        for line in (ROOT / "docs" / "scenarios.md").read_text().splitlines():
            columns = [column.strip() for column in line.split("|")]
            if len(columns) < 5 or columns[1] in ("id", "---"):
                continue
            named += [(columns[1], name) for name in re.findall(r"`(?:\w+\.)?(\w+)`", columns[3])]
        self.assertGreater(len(named), 200)
        missing = [f"{scenario}: {name}" for scenario, name in named if name not in known]
        self.assertEqual(missing, [])

    def test_a_scenario_without_a_test_has_a_reason(self):
        silent = []
        for line in (ROOT / "docs" / "scenarios.md").read_text().splitlines():
            columns = [column.strip() for column in line.split("|")]
            if len(columns) >= 5 and columns[1] not in ("id", "---") and not columns[3] and not columns[4]:
                silent.append(columns[1])
        self.assertEqual(silent, [])


if __name__ == "__main__":
    unittest.main()
