"""Every complete program of docs/guide/ compiles, and every relative link of the documentation leads somewhere.

A complete program stands in a block marked ```cpp and begins with #include <penstock/penstock.h>; a fragment is marked
```c++ and is not compiled. The compiler is the one of $CXX, else g++.
"""

import os
import pathlib
import re
import shlex
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "guide"
INCLUDE = "#include <penstock/penstock.h>\n"
COMPILE = [*shlex.split(os.environ.get("CXX") or "g++"), "-std=c++23", "-fsyntax-only", "-I", str(ROOT / "include")]

BLOCK = re.compile(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")


def line_of(text, position):
    return text.count("\n", 0, position) + 1


def blocks(path):
    """(first line, language, text) of each fenced block."""
    page = path.read_text(encoding="utf-8")
    return [(line_of(page, found.start(3)), found[2], found[3]) for found in BLOCK.finditer(page)]


def programs():
    return [(path, line, text) for path in sorted(GUIDE.glob("*.md")) for line, language, text in blocks(path)
            if language == "cpp"]


def prose(path):
    """The page with its code blanked out, line by line."""
    def blank(found):
        return "\n" * found[0].count("\n")
    page = BLOCK.sub(blank, path.read_text(encoding="utf-8"))
    page = re.sub(r"^    .*$", "", page, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", lambda code: "`" + "x" * (len(code[0]) - 2) + "`", page)


def anchors(path):
    """The names that headings get, as GitHub makes them."""
    page = BLOCK.sub("", path.read_text(encoding="utf-8"))
    names = set()
    for heading in re.findall(r"^#+ +(.*?) *$", page, re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", heading.lower())
        names.add(words.replace(" ", "-"))
    return names


def pages():
    return sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")})


class GuideTest(unittest.TestCase):
    def test_each_program_compiles(self):
        found = programs()
        self.assertNotEqual(found, [], "docs/guide/ has no complete program")
        for path, line, text in found:
            place = f"{path.relative_to(ROOT)}:{line}"
            with self.subTest(place), tempfile.TemporaryDirectory() as folder:
                source = pathlib.Path(folder) / "program.cpp"
                source.write_text(f'#line {line} "{place.rpartition(":")[0]}"\n{text}', encoding="utf-8")
                result = subprocess.run([*COMPILE, str(source)], capture_output=True, text=True, check=False)
                self.assertEqual(result.returncode, 0, f"{shlex.join(COMPILE)}\n{result.stderr}")

    def test_what_is_marked_as_a_program_is_one(self):
        for path, line, text in programs():
            with self.subTest(f"{path.relative_to(ROOT)}:{line}"):
                self.assertTrue(text.startswith(INCLUDE), "a ```cpp block begins with " + INCLUDE.strip())
                self.assertIn("int main(", text, "a fragment is marked ```c++")

    def test_no_cpp_block_hides_from_the_compiler(self):
        for path in sorted(GUIDE.glob("*.md")):
            for line, language, text in blocks(path):
                with self.subTest(f"{path.relative_to(ROOT)}:{line}"):
                    self.assertIn(language, {"cpp", "c++", "cmake", "sh", "text"})
                    self.assertFalse(language != "cpp" and "int main(" in text, "a program is marked ```cpp")


class LinkTest(unittest.TestCase):
    def test_every_relative_link_leads_to_a_file(self):
        checked = 0
        for path in pages():
            text = prose(path)
            for found in LINK.finditer(text):
                target, _, anchor = found[1].partition("#")
                if re.match(r"[a-z][a-z0-9+.-]*:", target):
                    continue
                checked += 1
                with self.subTest(f"{path.relative_to(ROOT)}:{line_of(text, found.start())}: {found[1]}"):
                    file = path.parent / target if target else path
                    self.assertTrue(file.exists(), "there is no such file")
                    if anchor and file.suffix == ".md":
                        self.assertIn(anchor, anchors(file), "there is no such heading")
        self.assertGreater(checked, 0, "no link was found at all")

    def test_every_page_of_the_guide_is_in_its_index(self):
        index = (GUIDE / "README.md").read_text(encoding="utf-8")
        for path in sorted(GUIDE.glob("*.md")):
            if path.name != "README.md":
                self.assertIn(f"]({path.name})", index)


if __name__ == "__main__":
    unittest.main()
