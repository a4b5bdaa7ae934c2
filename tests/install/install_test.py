"""What `cmake --install` leaves is enough for another program: README's example is built against it by find_package
and by pkg-config, with the archive and with the shared library, and each of these programs serves.

The build directory named by PENSTOCK_BUILD is installed once into a temporary prefix, which is then moved: whatever
still pointed at the old place, at the sources or at the build would fail. CXX, CXXFLAGS, CMAKE and CMAKE_GENERATOR
are the build's own, so that a program is instrumented as the library is.
"""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN_EXAMPLE = ROOT / "tests" / "clients" / "readme_test.py"
BUILD = pathlib.Path(os.environ.get("PENSTOCK_BUILD") or ROOT / "build" / "asan")
CMAKE = os.environ.get("CMAKE", "cmake")
CXX = os.environ.get("CXX", "g++")
CXXFLAGS = shlex.split(os.environ.get("CXXFLAGS", ""))
VERSION = os.environ.get("PENSTOCK_VERSION") or re.search(
    r"project\(penstock VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())[1]
MAJOR, MINOR = VERSION.split(".")[:2]
# The ABI is that of a minor version before 1.0, of a major one from then on.
SONAME = "libpenstock.so." + (f"0.{MINOR}" if MAJOR == "0" else MAJOR)

USE_FAULTS = """\
#include <penstock/os/kernel.h>
#include <penstock/sim/faulty_kernel.h>

int main() {
  penstock::FaultyKernel kernel(penstock::linux_kernel());
  kernel.inject({.call = penstock::Call::eventfd, .error = 24});
  return kernel.eventfd(0, 0) == -24 ? 0 : 1;
}
"""

# One project, three programs' worth of ways to ask; imported targets are seen in their own folder only.
CONSUMER = {
    "CMakeLists.txt": """\
cmake_minimum_required(VERSION 3.25)
project(consumer LANGUAGES CXX)
function(add_programs)
  add_executable(${kind}_example ${PROJECT_SOURCE_DIR}/example.cpp)
  target_link_libraries(${kind}_example PRIVATE penstock::penstock)
  add_executable(${kind}_faults ${PROJECT_SOURCE_DIR}/faults.cpp)
  target_link_libraries(${kind}_faults PRIVATE penstock::sim)
endfunction()
foreach(kind static shared refused)
  add_subdirectory(${kind})
endforeach()
""",
    "static/CMakeLists.txt": """\
find_package(penstock ${version} REQUIRED)
add_programs()
""",
    "shared/CMakeLists.txt": """\
set(BUILD_SHARED_LIBS ON)
find_package(penstock ${version} REQUIRED)
add_programs()
""",
    "refused/CMakeLists.txt": """\
function(expect what)
  get_target_property(linked penstock::penstock INTERFACE_LINK_LIBRARIES)
  if(NOT linked STREQUAL what)
    message(FATAL_ERROR "penstock::penstock stands for ${linked}, not for ${what}")
  endif()
endfunction()
find_package(penstock ${next_version} QUIET)
if(penstock_FOUND)
  message(FATAL_ERROR "a version with another ABI was accepted")
endif()
find_package(penstock COMPONENTS static nonsense QUIET)
if(penstock_FOUND)
  message(FATAL_ERROR "an unknown component was accepted")
endif()
find_package(penstock REQUIRED COMPONENTS shared)
expect(penstock::shared)
find_package(penstock REQUIRED COMPONENTS static)
expect(penstock::static)
set(BUILD_SHARED_LIBS ON)
find_package(penstock REQUIRED COMPONENTS static shared)
expect(penstock::shared)
find_package(penstock REQUIRED COMPONENTS static)
expect(penstock::static)
""",
}

SUBPROJECT = """\
cmake_minimum_required(VERSION 3.25)
project(parent LANGUAGES C CXX)
add_subdirectory(${penstock} penstock)
foreach(target penstock::penstock penstock::static penstock::sim)
  if(NOT TARGET ${target})
    message(FATAL_ERROR "there is no target ${target}")
  endif()
endforeach()
foreach(target penstock::shared penstock_app penstock_header_check penstock_example_echo)
  if(TARGET ${target})
    message(FATAL_ERROR "the target ${target} came without being asked for")
  endif()
endforeach()
foreach(option TESTS EXAMPLES APP BENCHMARKS INSTALL SHARED)
  if(PENSTOCK_${option})
    message(FATAL_ERROR "PENSTOCK_${option} is on in a project that only adds Penstock")
  endif()
endforeach()
add_executable(server server.cpp)
target_link_libraries(server PRIVATE penstock::penstock)
"""


def run(*command, **arguments):
    """The command's output; an AssertionError with all it said if it failed."""
    command = [str(word) for word in command]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                            stdin=subprocess.DEVNULL, **arguments)
    if result.returncode != 0:
        raise AssertionError(f"{shlex.join(command)}\nended with {result.returncode}:\n{result.stdout}")
    return result.stdout


def environment(**changes):
    """Without what could point a build at another Penstock."""
    made = {name: value for name, value in os.environ.items()
            if name not in ("DESTDIR", "CMAKE_PREFIX_PATH", "PKG_CONFIG_PATH", "PKG_CONFIG_LIBDIR",
                            "PKG_CONFIG_SYSROOT_DIR", "LD_LIBRARY_PATH", "BUILD_SHARED_LIBS")}
    made.update({name: str(value) for name, value in changes.items()})
    return made


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def readme_example():
    return re.search(r"```cpp\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]


def dynamic(path, tag):
    """The values of a tag of the dynamic section: NEEDED, SONAME, RUNPATH."""
    return re.findall(rf"\({tag}\).*\[(.*)\]", run("readelf", "--wide", "--dynamic", path))


class InstallTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="penstock-install-")
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name).resolve()
        cls.first = cls.folder / "first"
        run(CMAKE, "--install", BUILD, "--prefix", cls.first, env=environment())
        cls.prefix = cls.folder / "moved" / "deeper"
        cls.prefix.parent.mkdir()
        cls.first.rename(cls.prefix)
        cls.lib = next(path.parent for path in cls.prefix.rglob("libpenstock.a"))

    def make(self, name):
        made = self.folder / name
        made.mkdir()
        self.addCleanup(shutil.rmtree, made)
        return made

    def serves(self, program, **changes):
        """It echoes across a half-close, and SIGTERM ends it with status 0."""
        run(sys.executable, RUN_EXAMPLE, "--inside", program, env=environment(**changes), timeout=200)

    def test_the_shared_library_is_named_after_the_versions_it_can_replace(self):
        self.assertEqual(os.readlink(self.lib / "libpenstock.so"), SONAME)
        self.assertEqual(os.readlink(self.lib / SONAME), f"libpenstock.so.{VERSION}")
        library = self.lib / f"libpenstock.so.{VERSION}"
        self.assertEqual(dynamic(library, "SONAME"), [SONAME])
        self.assertEqual(dynamic(library, "RUNPATH") + dynamic(library, "RPATH"), [])

    def test_no_installed_text_points_at_the_build_the_sources_or_the_old_prefix(self):
        texts = [path for path in self.lib.rglob("*") if path.suffix in (".cmake", ".pc")]
        self.assertGreaterEqual(len(texts), 6)
        for path in texts:
            text = path.read_text()
            for place in (self.first, self.prefix, BUILD.resolve(), ROOT):
                self.assertNotIn(str(place), text, path)

    def test_the_archives_hold_machine_code_that_any_compiler_links(self):
        for name in ("libpenstock.a", "libpenstock_sim.a"):
            content = (self.lib / name).read_bytes()
            self.assertNotIn(b".gnu.lto_", content, name)
            self.assertNotIn(b"BC\xc0\xde", content, name)
            self.assertIn(b"\x7fELF", content, name)

    def test_the_public_headers_are_installed_and_need_no_others(self):
        include = self.prefix / "include"
        source = ROOT / "include"
        wanted = sorted(path.relative_to(source) for path in source.rglob("*.h"))
        self.assertEqual(sorted(path.relative_to(include) for path in include.rglob("*") if path.is_file()), wanted)
        everything = "".join(f"#include <{path}>\n" for path in wanted)
        rule = subprocess.run([CXX, "-std=c++23", *CXXFLAGS, "-I", include, "-M", "-x", "c++", "-"], input=everything,
                              capture_output=True, text=True, check=False, cwd=self.folder)
        self.assertEqual(rule.returncode, 0, rule.stderr)
        used = [pathlib.Path(word) for word in rule.stdout.split() if word not in ("\\", "-.o:")]
        ours = {path for path in used if "penstock" in path.parts or ROOT in path.parents}
        self.assertEqual(ours, {include / path for path in wanted})

    def test_find_package_gives_the_archive_and_on_request_the_shared_library(self):
        consumer = self.make("consumer")
        write(consumer, CONSUMER | {"example.cpp": readme_example(), "faults.cpp": USE_FAULTS})
        next_version = f"0.{int(MINOR) + 1}" if MAJOR == "0" else f"{int(MAJOR) + 1}.0"
        run(CMAKE, "-S", consumer, "-B", consumer / "build", f"-DCMAKE_PREFIX_PATH={self.prefix}",
            f"-DCMAKE_CXX_COMPILER={CXX}", f"-Dversion={MAJOR}.{MINOR}", f"-Dnext_version={next_version}",
            env=environment())
        run(CMAKE, "--build", consumer / "build", "--parallel", "2", env=environment())
        for kind, needed in (("static", []), ("shared", [SONAME])):
            with self.subTest(kind):
                programs = consumer / "build" / kind
                for program in ("example", "faults"):
                    self.assertEqual([name for name in dynamic(programs / f"{kind}_{program}", "NEEDED")
                                      if "penstock" in name], needed)
                run(programs / f"{kind}_faults", env=environment())
                self.serves(programs / f"{kind}_example")

    def test_pkg_config_is_enough_for_the_archive_and_for_the_shared_library(self):
        if shutil.which("pkg-config") is None:
            self.skipTest("there is no pkg-config; install pkgconf")
        work = self.make("by_hand")
        write(work, {"example.cpp": readme_example(), "faults.cpp": USE_FAULTS})
        found = environment(PKG_CONFIG_PATH=self.lib / "pkgconfig")

        def ask(*question):
            return shlex.split(run("pkg-config", *question, env=found))

        self.assertEqual(ask("--modversion", "penstock", "penstock-sim"), [VERSION, VERSION])
        for source, package in (("example", "penstock"), ("faults", "penstock-sim")):
            run(CXX, "-std=c++23", *CXXFLAGS, "-c", f"{source}.cpp", *ask("--cflags", package), cwd=work)
            run(CXX, *CXXFLAGS, f"{source}.o", *ask("--libs", package), "-o", f"shared_{source}", cwd=work)
            run(CXX, *CXXFLAGS, f"{source}.o", "-Wl,-Bstatic", *ask("--static", "--libs", package), "-Wl,-Bdynamic",
                "-o", f"static_{source}", cwd=work)
        for kind, needed in (("static", []), ("shared", [SONAME])):
            with self.subTest(kind):
                # The static program finds no shared library to fall back to.
                path = {"LD_LIBRARY_PATH": self.lib} if kind == "shared" else {}
                for program in ("example", "faults"):
                    self.assertEqual([name for name in dynamic(work / f"{kind}_{program}", "NEEDED")
                                      if "penstock" in name], needed)
                run(work / f"{kind}_faults", env=environment(**path))
                self.serves(work / f"{kind}_example", **path)

    def test_a_project_that_adds_penstock_gets_the_library_and_nothing_else(self):
        parent = self.make("parent")
        write(parent, {"CMakeLists.txt": SUBPROJECT, "server.cpp": readme_example()})
        run(CMAKE, "-S", parent, "-B", parent / "build", f"-Dpenstock={ROOT}", f"-DCMAKE_CXX_COMPILER={CXX}",
            env=environment())


if __name__ == "__main__":
    unittest.main()
