"""check_floors.py lets includes go down, and fails on each way of going up."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

TOOL = pathlib.Path(__file__).resolve().parents[2] / "tools" / "check_floors.py"
FLOORS = """# Architecture

Some `code` first.

```
not/ a floor
```

```floors
base/    result, clock
os/      kernel
io/      backends

tcp/     connection
frame/   codecs
(coro/ comes later)
sim/     beside the library
app/     the command
```
"""


class CheckFloors(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = pathlib.Path(self.folder.name)
        self.write("ARCHITECTURE.md", FLOORS)
        self.write("include/penstock/base/result.h", "#include <expected>\n")

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def run_tool(self):
        return subprocess.run([sys.executable, str(TOOL), str(self.root)], capture_output=True,
                              text=True, check=False)

    def accepts(self, name, text):
        self.write(name, text)
        result = self.run_tool()
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def refuses(self, name, text, line, words):
        self.write(name, text)
        result = self.run_tool()
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        self.assertIn(f"{name}:{line}: ", result.stdout)
        self.assertIn(words, result.stdout)
        self.assertIn("1 include(s)", result.stdout)

    def cannot_run(self, words):
        result = self.run_tool()
        self.assertEqual(result.returncode, 2, result.stdout + result.stderr)
        self.assertIn(words, result.stderr)

    def test_includes_that_go_down_or_stay_are_accepted(self):
        self.write("src/tcp/helper.h", "#pragma once\n")
        self.accepts("src/tcp/a.cpp",
                     '#include <vector>\n#include <sys/socket.h>\n#include "penstock/tcp/a.h"\n'
                     '#include <penstock/io/b.h>\n#include "base/x.h"\n#include "helper.h"\n'
                     '#include "../os/y.h"\n')

    def test_a_public_header_that_includes_a_higher_floor_is_refused(self):
        self.refuses("include/penstock/os/kernel.h", "#pragma once\n#include <penstock/tcp/a.h>\n",
                     2, "higher floor tcp/. Include only from base/;")

    def test_a_source_that_includes_a_higher_floor_is_refused(self):
        self.refuses("src/io/a.cpp", '#include "penstock/frame/line.h"\n', 1, "higher floor frame/")

    def test_a_private_header_of_a_higher_floor_is_refused(self):
        self.refuses("src/io/a.cpp", '//\n//\n#  include "tcp/impl.h"\n', 3, "higher floor tcp/")

    def test_a_relative_path_to_a_higher_floor_is_refused(self):
        self.refuses("src/io/a.cpp", '#include "../tcp/impl.h"\n', 1, "higher floor tcp/")

    def test_a_relative_path_through_the_public_headers_is_refused(self):
        self.refuses("src/io/a.cpp", '#include "../../include/penstock/tcp/a.h"\n', 1,
                     "higher floor tcp/")

    def test_a_floor_that_includes_itself_by_both_paths_is_accepted(self):
        self.accepts("src/io/a.cpp", '#include "io/impl.h"\n#include <penstock/io/b.h>\n')

    def test_the_library_may_not_include_the_simulation(self):
        self.refuses("src/tcp/a.cpp", "#include <penstock/sim/faulty_kernel.h>\n", 1, "simulation")

    def test_the_library_may_not_include_the_command(self):
        self.refuses("src/frame/a.cpp", '#include "app/options.h"\n', 1, "command")

    def test_the_library_may_not_include_the_umbrella(self):
        self.refuses("src/tcp/a.cpp", "#include <penstock/penstock.h>\n", 1, "every floor")

    def test_the_umbrella_includes_every_floor_but_not_the_simulation(self):
        self.accepts("include/penstock/penstock.h", "#include <penstock/frame/line.h>\n")
        self.refuses("include/penstock/penstock.h", "#include <penstock/sim/world.h>\n", 1,
                     "simulation")

    def test_the_simulation_includes_up_to_tcp(self):
        self.accepts("src/sim/a.cpp", '#include <penstock/tcp/a.h>\n#include "sim/b.h"\n')
        self.refuses("src/sim/a.cpp", "#include <penstock/frame/line.h>\n", 1, "up to tcp/")

    def test_the_simulation_may_not_include_the_command(self):
        self.refuses("src/sim/a.cpp", '#include "app/options.h"\n', 1, "command")

    def test_the_command_and_the_tests_include_everything(self):
        self.write("tests/io/a_test.cpp", '#include "tcp/impl.h"\n#include <penstock/sim/w.h>\n')
        self.accepts("src/app/main.cpp", "#include <penstock/penstock.h>\n#include <fmt/core.h>\n"
                                         '#include <penstock/sim/world.h>\n#include "tcp/impl.h"\n')

    def test_an_example_sees_public_headers_only(self):
        self.accepts("examples/echo.cpp", "#include <penstock/penstock.h>\n")
        self.refuses("examples/echo.cpp", '#include "../src/tcp/impl.h"\n', 1, "public headers")

    def test_a_public_header_may_not_include_a_private_one(self):
        self.refuses("include/penstock/tcp/a.h", '#include "base/secret.h"\n', 1, "private")

    def test_the_library_may_not_use_what_is_for_apps(self):
        self.refuses("src/base/a.cpp", "#include <spdlog/spdlog.h>\n", 1, "for apps and tests")

    def test_a_folder_that_is_no_floor_is_refused(self):
        self.write("src/util/a.cpp", "int x;\n")
        result = self.run_tool()
        self.assertEqual(result.returncode, 1)
        self.assertIn("src/util/ is not a floor", result.stdout)

    def test_an_include_of_an_unknown_floor_is_refused(self):
        self.refuses("src/tcp/a.cpp", "#include <penstock/util/a.h>\n", 1, "names no floor")

    def test_an_include_through_a_macro_is_refused(self):
        self.refuses("src/tcp/a.cpp", "#include HEADER\n", 1, "macro")

    def test_it_does_not_run_without_a_list_of_floors(self):
        self.write("ARCHITECTURE.md", "# Architecture\n")
        self.cannot_run("no block")
        self.write("ARCHITECTURE.md", "```floors\n```\n")
        self.cannot_run("empty")
        self.write("ARCHITECTURE.md", "```floors\nbase/ a\ntcp/ b\n")
        self.cannot_run("no end")
        self.write("ARCHITECTURE.md", "```floors\nbase/ a\nbase/ b\ntcp/\n```\n")
        self.cannot_run("twice")
        (self.root / "ARCHITECTURE.md").unlink()
        self.cannot_run("does not exist")

    def test_it_does_not_pass_when_there_are_no_sources(self):
        (self.root / "include/penstock/base/result.h").unlink()
        self.cannot_run("no source files")


if __name__ == "__main__":
    unittest.main()
