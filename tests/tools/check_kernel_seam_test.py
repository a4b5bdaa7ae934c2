"""check_kernel_seam.py fails on an object that reaches around the seam, and on what it cannot read."""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

TOOL = pathlib.Path(__file__).resolve().parents[2] / "tools" / "check_kernel_seam.py"
CXX = os.environ.get("CXX", "g++")


class CheckKernelSeam(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = pathlib.Path(self.folder.name)

    def compile(self, source, text, *flags):
        """Compiles text as <root>/penstock.dir/<source>.o, which is where CMake would put it."""
        target = self.root / "penstock.dir" / (source + ".o")
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([CXX, "-std=c++20", "-x", "c++", "-c", "-", "-o", str(target), *flags],
                       input=text, text=True, check=True, capture_output=True)
        return target

    def run_tool(self, *arguments):
        return subprocess.run([sys.executable, str(TOOL), *map(str, arguments)],
                              capture_output=True, text=True, check=False)

    def accepts(self, *objects):
        result = self.run_tool("--objects", *objects)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def refuses(self, text, *words, flags=()):
        path = self.compile("src/tcp/bad.cpp", text, *flags)
        result = self.run_tool("--objects", path)
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        self.assertIn(str(path), result.stdout)
        for word in words:
            self.assertIn(word, result.stdout)

    def cannot_run(self, arguments, words):
        result = self.run_tool(*arguments)
        self.assertEqual(result.returncode, 2, result.stdout + result.stderr)
        self.assertIn(words, result.stderr)

    def test_an_object_without_system_calls_is_accepted(self):
        self.accepts(self.compile("src/base/good.cpp", "#include <string>\n#include <cstdio>\n"
                                  "#include <unistd.h>\n"
                                  "void f(std::string& s) { s += 'x'; std::fputs(s.c_str(), stderr);"
                                  " if (isatty(2)) s += 'y'; }\n"))

    def test_a_member_function_that_is_called_like_a_system_call_is_accepted(self):
        self.accepts(self.compile("src/tcp/good.cpp",
                                  "struct Kernel { int close(int); virtual int recv(int) = 0; };\n"
                                  "int f(Kernel& k) { return k.close(1) + k.recv(2); }\n"))

    def test_a_socket_call_is_refused(self):
        self.refuses("#include <sys/socket.h>\nint f() { return accept4(1, nullptr, nullptr, 0); }\n",
                     "refers to accept4", "penstock::Kernel")

    def test_a_fortified_call_is_refused(self):
        self.refuses("#include <sys/socket.h>\n"
                     "long f(int d, unsigned long n) { char b[64]; long r = recv(d, b, n, 0);"
                     " return r + b[r % 64]; }\n",
                     "recv", flags=("-O2", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"))

    def test_file_and_signal_calls_are_refused(self):
        self.refuses("#include <fcntl.h>\n#include <unistd.h>\n#include <signal.h>\n"
                     "void f() { close(open(\"/x\", O_RDONLY)); signal(1, SIG_IGN); }\n",
                     "refers to close", "refers to open", "refers to signal", "3 reference(s)")

    def test_a_weak_reference_is_refused(self):
        self.refuses("extern \"C\" int eventfd(unsigned, int) __attribute__((weak));\n"
                     "int f() { return eventfd ? eventfd(0, 0) : 0; }\n", "eventfd")

    def test_the_clocks_of_the_standard_library_are_refused(self):
        self.refuses("#include <chrono>\nlong f() { return "
                     "std::chrono::steady_clock::now().time_since_epoch().count() + "
                     "std::chrono::system_clock::now().time_since_epoch().count(); }\n",
                     "steady_clock::now", "system_clock::now", "2 reference(s)", "time from the loop")

    def test_sleeping_is_refused(self):
        self.refuses("#include <thread>\n#include <chrono>\n"
                     "void f() { std::this_thread::sleep_for(std::chrono::seconds(1)); }\n",
                     "timer of the loop")

    def test_random_device_is_refused(self):
        self.refuses("#include <random>\nunsigned f() { std::random_device d; return d(); }\n",
                     "random_device", "entropy")

    def test_liburing_is_refused_but_for_helpers_that_fill_memory(self):
        declare = "extern \"C\" int io_uring_submit(void*);\nextern \"C\" void* io_uring_get_sqe(void*);\n"
        self.accepts(self.compile("src/io/good.cpp",
                                  declare + "void* f(void* p) { return io_uring_get_sqe(p); }\n"))
        self.refuses(declare + "int f(void* p) { return io_uring_submit(p); }\n", "io_uring_submit")

    def test_the_real_kernel_and_only_it_is_exempt(self):
        text = "#include <unistd.h>\nvoid f() { close(1); }\n"
        self.accepts(self.compile("src/os/linux_kernel.cpp", text))
        for other in ("src/os/linux_kernel2.cpp", "src/tcp/linux_kernel.cpp", "src/app/main.cpp"):
            result = self.run_tool("--objects", self.compile(other, text))
            self.assertEqual(result.returncode, 1, other)

    def test_the_objects_of_a_build_directory_are_found_by_its_list(self):
        good = self.compile("src/base/good.cpp", "int f() { return 1; }\n")
        bad = self.compile("src/base/bad.cpp", "#include <unistd.h>\nvoid g() { close(1); }\n")
        listing = self.root / "kernel_seam_objects.txt"
        listing.write_text(f"{good}\n\n", encoding="utf-8")
        self.assertEqual(self.run_tool(self.root).returncode, 0)
        listing.write_text(f"{good}\n{bad.relative_to(self.root)}\n", encoding="utf-8")
        self.assertEqual(self.run_tool(self.root).returncode, 1)

    def test_a_source_without_an_object_is_not_passed_over(self):
        good = self.compile("src/base/good.cpp", "int f() { return 1; }\n")
        (self.root / "kernel_seam_objects.txt").write_text(f"{good}\n", encoding="utf-8")
        (self.root / "src/base").mkdir(parents=True)
        (self.root / "src/base/good.cpp").touch()
        self.assertEqual(self.run_tool("--source", self.root, self.root).returncode, 0)
        (self.root / "src/base/new.cpp").touch()
        self.cannot_run(["--source", self.root, self.root], "src/base/new.cpp has no object")

    def test_it_does_not_pass_without_objects(self):
        self.cannot_run([self.root], "does not exist")
        (self.root / "kernel_seam_objects.txt").write_text("\n", encoding="utf-8")
        self.cannot_run([self.root], "not one object file")

    def test_an_object_that_cannot_be_read_is_no_success(self):
        self.cannot_run(["--objects", self.root / "missing.o"], "cannot be read")
        (self.root / "text.o").write_text("hello", encoding="utf-8")
        self.cannot_run(["--objects", self.root / "text.o"], "not an ELF object")
        (self.root / "broken.o").write_bytes(b"\x7fELF and then nothing of the kind")
        self.cannot_run(["--objects", self.root / "broken.o"], "nm failed")

    def test_an_object_for_link_time_optimisation_is_no_success(self):
        lto = self.compile("src/base/lto.cpp", "#include <unistd.h>\nvoid f() { close(1); }\n", "-flto")
        self.cannot_run(["--objects", lto], "interprocedural optimisation")

    def test_nm_that_is_missing_is_no_success(self):
        good = self.compile("src/base/good.cpp", "int f() { return 1; }\n")
        self.cannot_run(["--nm", self.root / "no-nm", "--objects", good], "cannot be run")


if __name__ == "__main__":
    unittest.main()
