"""The README's first program compiles as it stands, and is a bounded, half-close-correct echo server.

It listens on a fixed port, so it runs in a network namespace of its own where that is allowed (as root, or with user
namespaces); elsewhere on the machine's loopback.
"""

import ctypes
import fcntl
import hashlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import unittest

import support

EXAMPLE = os.path.join(os.path.dirname(support.BINARY), "examples", "echo")
ADDRESS = ("127.0.0.1", 7000)


def enter_own_network():
    """A network namespace with its loopback up; False where that is not allowed."""
    new_user, new_network = 0x10000000, 0x40000000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(new_network) != 0 and libc.unshare(new_user | new_network) != 0:
        return False
    get_flags, set_flags, is_up = 0x8913, 0x8914, 0x1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, get_flags, struct.pack("16sH14x", b"lo", 0))
        (flags,) = struct.unpack_from("16xH", answer)
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sH14x", b"lo", flags | is_up))
    return True


def connect():
    deadline = time.monotonic() + support.SOON
    while True:
        try:
            return socket.create_connection(ADDRESS, timeout=support.LATE)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise


def check_echo():
    """8 MiB and a half-close, fed while nobody reads until the server stops taking more: all comes back, then EOF."""
    data = bytes(range(251)) * (8 * support.MIB // 251)
    with connect() as client:
        def feed():
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        feeder = threading.Thread(target=feed)
        feeder.start()
        echoed = support.receive_to_end(client)
        feeder.join()
    echoed = echoed if isinstance(echoed, (bytes, bytearray)) else b"".join(echoed)
    assert hashlib.sha256(echoed).digest() == hashlib.sha256(data).digest(), "the echo differs"


def inside(program):
    """What the child in the namespace does: the whole life of the example."""
    enter_own_network()
    server = subprocess.Popen([program])
    try:
        check_echo()
        server.send_signal(signal.SIGTERM)
        assert server.wait(support.SOON) == 0, f"the example ended with {server.returncode}"
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


class ReadmeTest(unittest.TestCase):
    def test_the_first_program_of_the_readme_is_the_one_that_is_built(self):
        readme = (support.ROOT / "README.md").read_text()
        program = re.search(r"```cpp\n(.*?)```", readme, re.DOTALL)
        self.assertIsNotNone(program, "README.md has no C++ program")
        self.assertEqual((support.ROOT / "examples" / "echo.cpp").read_text(), program[1])

    def test_it_echoes_everything_across_a_half_close_and_stops_in_order(self):
        self.assertTrue(os.path.exists(EXAMPLE), f"{EXAMPLE} is missing; build the examples")
        child = subprocess.run([sys.executable, __file__, "--inside", EXAMPLE], capture_output=True, text=True,
                               timeout=2 * support.LATE)
        self.assertEqual(child.returncode, 0, child.stdout + child.stderr)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2])
    else:
        unittest.main()
