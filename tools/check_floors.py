#!/usr/bin/env python3
"""Fails when an #include goes up: a file may include only from its own floor and those below.

The floors, bottom first, are read from ARCHITECTURE.md: a fenced block that opens with ```floors
and has one line per floor, `base/   description`. Two folders have rules of their own, whether or
not they are listed:

  sim/   may include every floor up to tcp/; nothing in the library may include it
  app/   may include everything; nothing but the tests may include it

Tests, examples, benchmarks and fuzzers stand above the floors and are free, except that an example
sees what a user sees: the public headers. A file of the library may not include the umbrella
header, a public header may not include a private one, and neither the library nor sim/ may include
a library that only apps or tests use.

Usage: check_floors.py [root]     exit status: 0 clean, 1 violations, 2 the check cannot run
"""

import pathlib
import re
import sys

SIM_MAY_INCLUDE_UP_TO = "tcp"
UMBRELLA = "penstock/penstock.h"
SUFFIXES = {".h", ".hpp", ".c", ".cc", ".cpp", ".inc"}
FOREIGN = re.compile(r"(fmt|spdlog|CLI|toml\+\+|gtest|gmock|rapidcheck|benchmark|prometheus|hiredis)[/.]")
INCLUDE = re.compile(r'^\s*#\s*include(?:_next)?\b\s*(?:<([^>]+)>|"([^"]+)"|(\S.*))')
FLOOR = re.compile(r"^([a-z_]+)/(?:\s|$)")


class CannotRun(Exception):
    """The check has nothing to go by; silence would look like success."""


def read_floors(root):
    """The library's floors, bottom first, without sim and app."""
    page = root / "ARCHITECTURE.md"
    if not page.is_file():
        raise CannotRun(f"{page} does not exist; the list of floors is read from it")
    floors = []
    inside = False
    seen_block = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if not inside:
            inside = bool(re.match(r"^```\s*floors\b", text))
            seen_block = seen_block or inside
            continue
        if text.startswith("```"):
            inside = False
            continue
        if not text or text.startswith(("(", "#")):
            continue
        match = FLOOR.match(text)
        if not match:
            raise CannotRun(f"{page}:{number}: '{text}' is not a floor; write `name/   description`")
        if match[1] in floors:
            raise CannotRun(f"{page}:{number}: floor {match[1]}/ is listed twice")
        if match[1] not in ("sim", "app"):
            floors.append(match[1])
    if not seen_block:
        raise CannotRun(f"{page} has no block that opens with ```floors")
    if inside:
        raise CannotRun(f"{page}: the ```floors block has no end")
    if not floors:
        raise CannotRun(f"{page}: the ```floors block is empty")
    if SIM_MAY_INCLUDE_UP_TO not in floors:
        raise CannotRun(f"{page}: floor {SIM_MAY_INCLUDE_UP_TO}/ is missing, and sim/ is ruled by it")
    return floors


def locate(parts):
    """(place, is_public) of a path relative to the root.

    place is a floor's name, 'sim', 'app', 'examples', 'free', 'umbrella' (include/penstock/*.h),
    or None for a file that belongs nowhere.
    """
    if parts[:2] == ("include", "penstock"):
        return ("umbrella" if len(parts) == 3 else parts[2]), True
    if parts[0] == "src":
        return (parts[1] if len(parts) > 2 else None), False
    if parts[0] == "examples":
        return "examples", False
    if parts[0] in ("tests", "bench", "fuzz"):
        return "free", False
    return None, False


class Checker:
    def __init__(self, root):
        self.root = root.resolve()
        self.floors = read_floors(root)
        self.rank = {name: index for index, name in enumerate(self.floors)}
        self.rank_of_sim = self.rank[SIM_MAY_INCLUDE_UP_TO]
        self.places = set(self.floors) | {"sim", "app"}
        self.files = 0
        self.problems = []

    def below(self, place):
        allowed = self.floors[: self.rank_of_sim + 1] if place == "sim" else self.floors[: self.rank[place]]
        return ", ".join(f"{name}/" for name in allowed) or "nothing but its own floor"

    def target_of(self, path, name, quoted):
        """(place, is_public) of an included name, or None when it is not one of ours."""
        if name == UMBRELLA:
            return "umbrella", True
        if name.startswith("penstock/"):
            parts = name.split("/")
            return ("umbrella" if len(parts) == 2 else parts[1]), True
        # A quoted name is looked for beside its file first, then under src/.
        beside = pathlib.Path(self._normal(path.parent / name))
        if quoted or ".." in name:
            if beside.is_file() and self.root in beside.parents:
                return locate(beside.relative_to(self.root).parts)
        first = name.split("/")[0]
        if "/" in name and first in self.places:
            return first, False
        if ".." in name.split("/") and self.root in beside.parents:
            return locate(beside.relative_to(self.root).parts)
        return None

    @staticmethod
    def _normal(path):
        parts = []
        for part in path.parts:
            if part == ".." and parts:
                parts.pop()
            elif part != ".":
                parts.append(part)
        return pathlib.Path(*parts)

    def report(self, path, number, message):
        self.problems.append(f"{path.relative_to(self.root)}:{number}: {message}")

    def check_file(self, path):
        self.files += 1
        place, is_public = locate(path.relative_to(self.root).parts)
        if place == "free":
            return
        if place is None or place not in self.places | {"umbrella", "examples"}:
            folder = path.parent.relative_to(self.root)
            self.report(path, 1, f"{folder}/ is not a floor. Put the file on a floor, or add the "
                                 f"floor to the list in ARCHITECTURE.md.")
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            if match[3]:
                self.report(path, number, "the included name is a macro, which cannot be checked. "
                                          "Write the name out.")
                continue
            name = match[1] or match[2]
            message = self.judge(path, place, is_public, name, quoted=match[2] is not None)
            if message:
                self.report(path, number, message)

    def judge(self, path, place, is_public, name, quoted):
        """What is wrong with including `name` from a file in `place`, or None."""
        if place not in ("app", "examples") and FOREIGN.match(name):
            return (f"<{name}> is for apps and tests; the library depends on the C++ standard "
                    f"library, liburing and ISA-L only.")
        target = self.target_of(path, name, quoted)
        if target is None:
            return None
        other, other_is_public = target
        if other is None or other not in self.places | {"umbrella", "examples", "free"}:
            return f"'{name}' names no floor. The floors are listed in ARCHITECTURE.md."
        if other in ("examples", "free"):
            return f"'{name}' is outside the library. Move what is shared to a floor."
        if is_public and not other_is_public:
            return (f"a public header includes the private '{name}'. Declare what is needed here "
                    f"and include the rest from the .cpp.")
        if place == "examples":
            if not other_is_public or other == "app":
                return f"an example may include public headers only, and '{name}' is private."
            return None
        if place == "app":
            return None
        if other == "app":
            return f"'{name}' belongs to the command. Move what is shared down to a floor."
        if other == "umbrella":
            return (f"'{name}' includes every floor. Include the headers of the floors below: "
                    f"{self.below(place)}." if place != "umbrella" else None)
        if other == "sim":
            if place == "sim":
                return None
            return (f"'{name}' belongs to the simulation, which stands beside the library. Take an "
                    f"interface from os/ or io/, and let the test pass the simulated one in.")
        if place == "umbrella":
            return None
        if place == "sim":
            if self.rank[other] > self.rank_of_sim:
                return (f"sim/ may include floors up to {SIM_MAY_INCLUDE_UP_TO}/, and {other}/ is "
                        f"above it. Move what needs it to the tests.")
            return None
        if self.rank[other] > self.rank[place]:
            return (f"{place}/ includes '{name}' from the higher floor {other}/. Include only from "
                    f"{self.below(place)}; or declare an interface in {place}/ that {other}/ "
                    f"implements, or move this file up.")
        return None

    def run(self):
        for folder in ("include", "src", "examples", "tests", "bench", "fuzz"):
            for path in sorted((self.root / folder).rglob("*")):
                if path.is_file() and path.suffix in SUFFIXES:
                    self.check_file(path)
        return self.problems


def main(arguments):
    root = pathlib.Path(arguments[1] if len(arguments) > 1 else ".")
    try:
        checker = Checker(root)
        problems = checker.run()
        if checker.files == 0:
            raise CannotRun(f"{root} has no source files")
    except CannotRun as reason:
        print(f"check_floors: {reason}", file=sys.stderr)
        return 2
    for problem in problems:
        print(problem)
    if problems:
        print(f"check_floors: {len(problems)} include(s) against the order of floors "
              f"({' < '.join(checker.floors)})")
        return 1
    print(f"check_floors: {checker.files} files, every include stays on its floor or goes down")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
