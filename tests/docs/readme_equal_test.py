"""README.md and README.zh-CN.md say the same: code, headings, links, names and numbers are compared.

A change of one belongs in the other in the same commit.
"""

import collections
import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = ("README.md", "README.zh-CN.md")

FENCED = re.compile(r"^( *)```[^\n]*\n.*?^\1```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    .*\n?)+", re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^()\s]+)\)")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class Page:
    def __init__(self, name):
        text = (ROOT / name).read_text(encoding="utf-8")
        self.fenced = [block[0] for block in FENCED.finditer(text)]
        text = FENCED.sub("", text)
        self.indented = [block.rstrip("\n") for block in INDENTED.findall(text)]
        text = INDENTED.sub("", text)
        self.headings = [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]
        self.rows = len(re.findall(r"^\|", text, re.MULTILINE))
        self.paragraphs = len(re.findall(r"\n\n+(?=\S)", text))
        self.items = len(re.findall(r"^\* ", text, re.MULTILINE))
        self.links = LINK.findall(text)
        text = LINK.sub("]", text)
        self.names = set(CODE.findall(text))
        self.numbers = set(NUMBER.findall(CODE.sub("", text)))


class ReadmeEqualTest(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.english, cls.chinese = (Page(name) for name in NAMES)

    def test_the_code_is_the_same(self):
        self.assertGreater(len(self.english.fenced), 0)
        self.assertGreater(len(self.english.indented), 0)
        for kind in ("fenced", "indented"):
            english, chinese = getattr(self.english, kind), getattr(self.chinese, kind)
            self.assertEqual(len(english), len(chinese), f"{kind} blocks")
            for number, (one, other) in enumerate(zip(english, chinese), 1):
                with self.subTest(f"{kind} block {number}"):
                    self.assertEqual(one.split("\n"), other.split("\n"))

    def test_headings_paragraphs_list_items_and_table_rows_correspond(self):
        self.assertGreater(len(self.english.headings), 0)
        for what in ("headings", "paragraphs", "items", "rows"):
            self.assertEqual(getattr(self.english, what), getattr(self.chinese, what), what)

    def test_each_links_to_the_other_at_the_top(self):
        for name, other in (NAMES, reversed(NAMES)):
            top = (ROOT / name).read_text(encoding="utf-8").split("\n")[:5]
            self.assertTrue(any(f"]({other})" in line for line in top), f"{name} does not link to {other}")

    def test_the_links_are_the_same(self):
        english = collections.Counter(self.english.links)
        chinese = collections.Counter(self.chinese.links)
        english.subtract({NAMES[1]: 1})
        chinese.subtract({NAMES[0]: 1})
        self.assertEqual(+english, +chinese)

    def test_names_and_numbers_are_the_same(self):
        self.assertEqual(self.english.names, self.chinese.names, "`names`")
        self.assertEqual(self.english.numbers, self.chinese.numbers, "numbers")


if __name__ == "__main__":
    unittest.main()
