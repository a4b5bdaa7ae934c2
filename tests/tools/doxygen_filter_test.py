"""doxygen_filter.py shows Doxygen what a reader of a header sees, line by line."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

TOOL = pathlib.Path(__file__).resolve().parents[2] / "tools" / "doxygen_filter.py"
HEADERS = pathlib.Path(__file__).resolve().parents[2] / "include" / "penstock"


class DoxygenFilter(unittest.TestCase):
    def filtered(self, text):
        with tempfile.TemporaryDirectory() as folder:
            header = pathlib.Path(folder) / "header.h"
            header.write_text(text)
            return subprocess.run([sys.executable, str(TOOL), str(header)], capture_output=True, text=True,
                                  check=True).stdout

    def shows(self, text, expected):
        self.assertEqual(self.filtered(text), expected)

    def test_the_opening_comment_documents_the_file(self):
        self.shows("// What it is.\n//\n//   call(it);\n//\n//   1. A rule.\n#pragma once\n// Not this.\n",
                   "/// What it is.\n///\n///       call(it);\n///\n///   1. A rule. @file\n#pragma once\n// Not this.\n")

    def test_a_comment_documents_the_overloads_right_below_it(self):
        self.shows("  /// Sends,\n  /// at once.\n  void send(A a);\n  int send(B b) {\n    send(b.a);\n  }\n  int send(C c);\n",
                   "  /// Sends,\n  /// at once.\n  void send(A a);\n  /** Sends, at once. */ int send(B b) {\n    send(b.a);\n"
                   "  }\n  /** Sends, at once. */ int send(C c);\n")

    def test_another_name_a_blank_line_or_another_comment_ends_that(self):
        for text in ("  /// Sends.\n  void send(A a);\n  void finish();\n  void send(B b);\n",
                     "  /// Sends.\n  void send(A a);\n\n  void send(B b);\n",
                     "  /// Sends.\n  void send(A a);\n  // -- Other --\n  void send(B b);\n",
                     "  /// Sends.\n  void send(A a);\n  /// Sends that.\n  void send(B b);\n"):
            self.shows(text, text)

    def test_deleted_functions_are_left_out(self):
        self.shows("  /// Makes it.\n  Thing();\n  Thing(const Thing&) = delete;\n",
                   "  /// Makes it.\n  Thing();\n  /** @cond */ Thing(const Thing&) = delete; /** @endcond */\n")

    def test_every_header_keeps_its_number_of_lines(self):
        headers = sorted(HEADERS.rglob("*.h"))
        self.assertTrue(headers)
        for header in headers:
            text = header.read_text()
            self.assertEqual(self.filtered(text).count("\n"), text.count("\n"), header)


if __name__ == "__main__":
    unittest.main()
