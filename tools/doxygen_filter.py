#!/usr/bin/env python3
"""Shows Doxygen a header the way we read it; docs/Doxyfile runs it as an input filter.

  1. The comment that opens a header documents the file. A paragraph in it that is indented, and is
     no numbered rule, keeps its lines.
  2. One comment documents all overloads that follow it without a blank line between.
  3. Deleted functions are left out.

No line is added or removed, so that Doxygen's messages name the header's own lines.

Usage: doxygen_filter.py HEADER     prints the header
"""

import pathlib
import re
import sys

DOC = re.compile(r"(\s*)///(?!<) ?(.*)")
PLAIN_COMMENT = re.compile(r"\s*//(?!/)")
FUNCTION = re.compile(r"(\s*)[^(=]*?(\w+)\s*\(")


def opening_comment(lines):
    """Rule 1: the first lines of the header."""
    shown = []
    apart = False
    for number, line in enumerate(lines):
        if not PLAIN_COMMENT.match(line):
            break
        text = line[2:]
        if number == 0 or not lines[number - 1][2:].strip():
            apart = bool(re.match(r"\s{2,}(?!\d+\.\s)\S", text))
        shown.append(("///" + ("    " if apart else "") + text).rstrip())
    if shown:
        shown[-1] += " @file"
    return shown


def filtered(lines):
    shown = opening_comment(lines)
    comment = []  # the latest one
    is_new = False  # no declaration has followed it yet
    indent = name = None  # of the function it documents
    for line in lines[len(shown):]:
        doc = DOC.fullmatch(line)
        function = FUNCTION.match(line)
        spaces = line[:len(line) - len(line.lstrip())]
        if line.endswith("= delete;"):
            line = f"{spaces}/** @cond */ {line.lstrip()} /** @endcond */"
        elif doc:
            comment = comment + [doc[2]] if is_new else [doc[2]]
            is_new, name = True, None
        elif is_new:
            is_new, indent, name = False, spaces, function and function[2]
        elif not line.strip() or PLAIN_COMMENT.match(line):
            name = None
        elif spaces == indent and name is not None and not line.lstrip().startswith("}"):
            if function and function[2] == name:
                line = f"{spaces}/** {' '.join(comment)} */ {line.lstrip()}"
            else:
                name = None
        shown.append(line)
    return shown


def main():
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    print("\n".join(filtered(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8").split("\n"))), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
