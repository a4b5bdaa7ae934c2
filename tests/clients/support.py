"""What every client test shares: the command under test as a process, clients that push, read late or wait, and
measures of idleness taken from /proc.

The command is the file named by PENSTOCK, else build/release/bin/penstock of this checkout. PENSTOCK_TEST_BACKENDS
(comma separated) chooses the backends, PENSTOCK_TEST_SEED the bytes and sizes. A failing test prints what its
processes wrote to stderr and the one command that repeats it.

Deadlines here bound a failing run and are never the thing measured: they are long, and longer for a sanitizer build.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import pathlib
import random
import re
import resource
import selectors
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.path.abspath(os.environ.get("PENSTOCK") or ROOT / "build" / "release" / "bin" / "penstock")
BACKENDS = tuple(os.environ.get("PENSTOCK_TEST_BACKENDS", "epoll,epoll-et").split(","))
EVERY_BACKEND = BACKENDS if "PENSTOCK_TEST_BACKENDS" in os.environ else (*BACKENDS, "poll")
SEED = int(os.environ.get("PENSTOCK_TEST_SEED") or random.SystemRandom().randrange(1 << 32))

KIB = 1024
MIB = 1024 * 1024

LISTENING = re.compile(
    r"^listening on (?:(\[[0-9a-fA-F:.]+\]|[0-9.]+):(\d+)|unix:(.+)) \(backend ([a-z0-9_-]+)\)$")
SANITIZER_REPORT = re.compile(
    r"ERROR: (?:Address|Leak|Memory)Sanitizer|WARNING: (?:Thread|Memory)Sanitizer|runtime error:|[Aa]ssertion .*failed")


def sanitizer_of(path):
    """"address", "thread", "memory" or None: which sanitizer the binary was linked with, by its symbols."""
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError:
        return None
    for symbol, name in ((b"__asan_init", "address"), (b"__tsan_init", "thread"), (b"__msan_init", "memory")):
        if symbol in content:
            return name
    return None


SANITIZER = sanitizer_of(BINARY)
SLOWNESS = 1 if SANITIZER is None else 6
SOON = 15.0 * SLOWNESS  # for what should be immediate; well below the command's own 30 s limits in a release build
LATE = 90.0 * SLOWNESS  # for what moves many bytes

# What a process at rest may do in one second. A spinning loop never sleeps and shows in the ticks (1/100 s each); a
# loop that is woken for nothing shows in the voluntary context switches, summed over all its threads.
TICKS_AT_REST = 2
SWITCHES_AT_REST = 10 if SANITIZER != "thread" else 40  # the thread sanitizer has a thread of its own that wakes up

# How long nothing moves before a transfer counts as stalled.
STILL = 0.4 if SANITIZER is None else 1.2

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
PR_SET_PDEATHSIG = 1
PR_CAPBSET_DROP = 24
CAP_NET_BIND_SERVICE = 10
SIOCOUTQ = 0x5411
SIOCINQ = 0x541B


def each_backend(cls, backends=BACKENDS):
    """Class decorator: makes one test case per backend, with the attribute `backend`, out of one body."""
    module = sys.modules[cls.__module__]
    for backend in backends:
        name = cls.__name__ + "On" + "".join(part.capitalize() for part in backend.split("-"))
        made = type(name, (cls,), {"backend": backend, "__module__": cls.__module__, "__doc__": cls.__doc__})
        setattr(module, name, made)
    return None  # the body alone is not a test


def every_backend(cls):
    """The same with poll, which shares all but its selector with epoll: for a part of the tests."""
    return each_backend(cls, EVERY_BACKEND)


def main():
    """Runs the tests of the file that calls it."""
    unittest.main(verbosity=1)


class TestCase(unittest.TestCase):
    """A test that owns processes and sockets: all are gone when it ends, and their words are shown if it failed."""

    backend = None
    maxDiff = 2000

    @classmethod
    def setUpClass(cls):
        if not os.access(BINARY, os.X_OK):
            raise AssertionError(f"no command at {BINARY}: build it, or name it with PENSTOCK=path")

    def run(self, result=None):
        self.evidence = []  # callables giving text
        self.leaving = []  # callables by which this test's clients leave
        self.random = random.Random(f"{SEED}/{self.id().rsplit('.', 1)[-1]}")
        result = self.defaultTestResult() if result is None else result
        bad = len(result.failures) + len(result.errors)
        super().run(result)
        if len(result.failures) + len(result.errors) > bad:
            self._explain()
        return result

    def _explain(self):
        text = [f"\n--- {self.id()} failed"]
        for evidence in self.evidence:
            text.append(evidence().rstrip())
        backends = os.environ.get("PENSTOCK_TEST_BACKENDS")
        chosen = f"PENSTOCK_TEST_BACKENDS={shlex.quote(backends)} " if backends else ""
        script = pathlib.Path(sys.modules[type(self).__module__].__file__ or "").resolve()
        try:
            script = script.relative_to(ROOT)
        except ValueError:
            pass
        text.append(f"--- repeat with: PENSTOCK={shlex.quote(BINARY)} PENSTOCK_TEST_SEED={SEED} {chosen}"
                    f"python3 {script} {type(self).__name__}.{self._testMethodName}\n")
        sys.stderr.write("\n".join(text))
        sys.stderr.flush()

    # -- starting things

    def server(self, *options, **arguments):
        """A running echo server on this test's backend; see Server."""
        arguments.setdefault("backend", self.backend)
        return Server(self, *options, **arguments)

    def client(self, server, **arguments):
        """A connected blocking socket with a generous timeout, closed at the end of the test; see connect()."""
        made = connect(server.address, **arguments)
        self.addCleanup(made.close)
        self.leaving.append(made.close)
        return made

    def finish(self, server):
        """The usual end of a test: its clients leave, and the server then ends at once with status 0.

        A server may wait some seconds for clients that stay, as it should; that is for stop_test.py.
        """
        for leave in self.leaving:
            leave()
        return server.stop()

    def bytes_of(self, size):
        return self.random.randbytes(size)

    # -- waiting

    def eventually(self, condition, what, seconds=None):
        """Polls until the condition gives something true, and returns it; fails with `what` at the deadline."""
        deadline = time.monotonic() + (SOON if seconds is None else seconds)
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > deadline:
                self.fail(f"did not happen in time: {what}")
            time.sleep(0.005)

    # -- measuring

    def assert_at_rest(self, server, why, switches=SWITCHES_AT_REST, ticks=TICKS_AT_REST):
        """The process costs (next to) nothing: measured over one second, after what is under way has settled.

        Three tries, because the kernel may still be delivering something when the first window opens; a server that
        spins or is woken for nothing fails all of them.
        """
        self.eventually(lambda: server.activity(0.2)[0] <= ticks, f"{why}: the server's CPU use ends", SOON)
        seen = []
        for _ in range(3):
            used, woken = server.activity(1.0)
            seen.append(f"{used} ticks, {woken} switches")
            if used <= ticks and woken <= switches:
                return
        self.fail(f"{why}: the server is not at rest, in one second each: {'; '.join(seen)} "
                  f"(allowed {ticks} ticks, {switches} switches)")

    def assert_echoes(self, server, message=b"still there?"):
        """A fresh client is served."""
        with connect(server.address) as fresh:
            fresh.sendall(message)
            self.assertEqual(receive_exactly(fresh, len(message)), message)

    def assert_same_bytes(self, expected, actual, what=""):
        """Compares without printing megabytes."""
        if expected == actual:
            return
        where = next((i for i, (a, b) in enumerate(zip(expected, actual)) if a != b), min(len(expected), len(actual)))
        self.fail(f"{what}: {len(actual)} bytes came for {len(expected)}, different from offset {where}: expected "
                  f"{bytes(expected[where:where + 16])!r}, got {bytes(actual[where:where + 16])!r}")


def prepare_child(nofile=None, forbid_low_ports=False, close=()):
    """What runs between fork and exec: the child dies with the test, and has the limits it was given."""
    def prepare():
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        if nofile is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))
        if forbid_low_ports and os.geteuid() == 0:
            _prctl(PR_CAPBSET_DROP, CAP_NET_BIND_SERVICE, 0, 0, 0)
        for fd in close:
            os.close(fd)
    return prepare


def environment(**changes):
    """The environment without PENSTOCK_BACKEND, then with the changes; None removes a variable."""
    made = dict(os.environ)
    made.pop("PENSTOCK_BACKEND", None)
    for name, value in changes.items():
        made.pop(name, None)
        if value is not None:
            made[name] = value
    return made


class Child:
    """A process whose standard output is collected by a thread and whose stderr goes to a file."""

    def __init__(self, test, command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=None, pass_fds=(),
                 **preparation):
        self.test = test
        self.command = command
        self._errors = tempfile.TemporaryFile()
        self._output = bytearray()
        self._changed = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=self._errors, cwd="/",
                                        env=env or environment(), pass_fds=pass_fds,
                                        preexec_fn=prepare_child(**preparation))
        self.pid = self.process.pid
        test.addCleanup(self.kill)
        test.evidence.append(self._evidence)
        self._thread = None
        if self.process.stdout is not None:
            self._thread = threading.Thread(target=self._collect, daemon=True)
            self._thread.start()

    def _collect(self):
        fd = self.process.stdout.fileno()
        while True:
            chunk = os.read(fd, 65536)
            with self._changed:
                self._output += chunk
                self._ended = not chunk
                self._changed.notify_all()
            if not chunk:
                return

    def _evidence(self):
        status = self.process.poll()
        return (f"--- {shlex.join(self.command)}\n--- pid {self.pid}, "
                f"{'killed at clean-up' if self._killed else f'exit status {status}'}; its stdout:\n"
                f"{self.output[-1500:]}\n--- its stderr:\n{self._final_errors[-4000:]}")

    _killed = False
    _final_errors = ""

    def kill(self):
        """Ends the process whatever it does; called at the end of every test."""
        if self.process.poll() is None:
            self._killed = True
            self.process.kill()
        self.process.wait()
        if self._thread is not None:
            self._thread.join()
            self.process.stdout.close()
            self._thread = None
        if not self._errors.closed:
            self._final_errors = self.errors
            self._errors.close()

    @property
    def output(self):
        with self._changed:
            return self._output.decode("utf-8", "replace")

    @property
    def errors(self):
        if self._errors.closed:
            return self._final_errors
        size = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), size, 0).decode("utf-8", "replace")

    def line(self, index, seconds=None):
        """The complete output line of that index, once it is there; None when the output ended without it."""
        deadline = time.monotonic() + (SOON if seconds is None else seconds)
        with self._changed:
            while True:
                lines = self._output.split(b"\n")
                if len(lines) > index + 1:
                    return lines[index].decode("utf-8", "replace")
                if self._ended:
                    return None
                left = deadline - time.monotonic()
                if left <= 0:
                    self.test.fail(f"no line {index + 1} on stdout in time, only {bytes(self._output)!r}")
                self._changed.wait(left)

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, what, seconds=None):
        """The exit status; fails the test at the deadline."""
        try:
            status = self.process.wait(SOON if seconds is None else seconds)
        except subprocess.TimeoutExpired:
            self.test.fail(f"the process has not ended: {what}")
        if self._thread is not None:
            self._thread.join()
        report = SANITIZER_REPORT.search(self.errors)
        if report:
            self.test.fail(f"a defect is reported on stderr: {report.group(0)}")
        return status

    # -- from /proc

    def ticks(self):
        """User and system time of all threads, in 1/100 s."""
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def switches(self):
        """Voluntary context switches of all threads."""
        total = 0
        for thread in os.listdir(f"/proc/{self.pid}/task"):
            text = pathlib.Path(f"/proc/{self.pid}/task/{thread}/status").read_text()
            total += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", text, re.M).group(1))
        return total

    def activity(self, seconds):
        """(ticks, voluntary context switches) spent in a window of that length."""
        ticks, switches = self.ticks(), self.switches()
        time.sleep(seconds)
        return self.ticks() - ticks, self.switches() - switches

    def resident(self):
        """VmRSS in bytes."""
        text = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"^VmRSS:\s+(\d+) kB", text, re.M).group(1)) * KIB

    def descriptors(self):
        return [int(name) for name in os.listdir(f"/proc/{self.pid}/fd")]


class Server(Child):
    """`penstock echo`, accepting: the constructor returns after the line that says so."""

    def __init__(self, test, *options, listen="127.0.0.1:0", backend=None, **arguments):
        command = [BINARY, "echo", "--listen", listen]
        if backend is not None:
            command += ["--backend", backend]
        super().__init__(test, command + [str(option) for option in options], **arguments)
        first = self.line(0)
        if first is None:
            test.fail(f"the server ended with status {self.process.wait()} instead of listening")
        match = LISTENING.match(first)
        if not match:
            test.fail(f"the first line is not 'listening on ADDRESS (backend NAME)': {first!r}")
        host, port, self.path, self.backend = match.groups()
        self.host, self.port = (None, None) if self.path else (host.strip("[]"), int(port))
        if backend not in (None, "auto"):
            test.assertEqual(self.backend, backend, "the backend asked for is the one in use")

    @property
    def address(self):
        """What connect() takes: (host, port), or a Unix path, or an abstract name."""
        if self.path is None:
            return (self.host, self.port)
        return "\0" + self.path[1:] if self.path.startswith("@") else self.path

    def stop(self, number=signal.SIGTERM, status=0, seconds=None):
        """Signals, waits, checks the exit status, and returns the output lines after the first."""
        self.signal(number)
        actual = self.wait(f"after {signal.Signals(number).name}", seconds)
        self.test.assertEqual(actual, status, f"exit status after {signal.Signals(number).name}")
        return [line for line in self.output.split("\n")[1:] if line]

    def refuses(self):
        """True once nothing listens on the port any more."""
        with socket.socket(family_of(self.address), socket.SOCK_STREAM) as probe:
            try:
                probe.connect(self.address)
            except ConnectionRefusedError:
                return True
            except ConnectionResetError:
                return False  # it was in the backlog of a listener just being closed
            try:
                return probe.getsockname() == probe.getpeername()  # connected to itself: nobody listened
            except OSError:  # connected, and reset at once: somebody listened
                return False


class Result:
    """How a command that ends by itself ended."""

    def __init__(self, status, output, errors):
        self.status, self.output, self.errors = status, output, errors
        self.error_lines = [line for line in errors.split("\n") if line.strip()]


def run_to_end(test, *arguments, seconds=None, env=None, **preparation):
    """Runs the command with these arguments until it ends by itself."""
    child = Child(test, [BINARY, *map(str, arguments)], env=env, **preparation)
    status = child.wait(f"{' '.join(map(str, arguments))} should end by itself", seconds)
    return Result(status, child.output, child.errors)


# ---------------------------------------------------------------------------------------------------------------------
# Sockets

def family_of(address):
    if isinstance(address, str):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def connect(address, small=False, timeout=None):
    """A connected socket. small: little kernel memory on both sides, so that few bytes fill it.

    The segment size is what keeps the *other* side's send buffer small: the kernel sizes that by segments.
    """
    made = socket.socket(family_of(address), socket.SOCK_STREAM)
    try:
        if small:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * KIB)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * KIB)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        made.settimeout(SOON if timeout is None else timeout)
        made.connect(address)
        if made.family != socket.AF_UNIX:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        made.close()
        raise
    return made


def reset(sock):
    """Closes with a reset instead of a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def receive_exactly(sock, size):
    """That many bytes, fewer only at an end of stream."""
    parts = bytearray()
    while len(parts) < size:
        chunk = sock.recv(min(size - len(parts), 256 * KIB))
        if not chunk:
            break
        parts += chunk
    return bytes(parts)


def receive_to_end(sock):
    """All bytes up to a clean end of stream; a reset raises ConnectionResetError."""
    parts = bytearray()
    while chunk := sock.recv(256 * KIB):
        parts += chunk
    return bytes(parts)


def receive_until_over(sock):
    """(bytes, "eof" or "reset"): whatever comes, and how it ended."""
    parts = bytearray()
    while True:
        try:
            chunk = sock.recv(256 * KIB)
        except (ConnectionResetError, BrokenPipeError):
            return bytes(parts), "reset"
        if not chunk:
            return bytes(parts), "eof"
        parts += chunk


def unacknowledged(sock):
    """Bytes this socket has sent that the other kernel has not taken (SIOCOUTQ)."""
    return struct.unpack("i", fcntl.ioctl(sock.fileno(), SIOCOUTQ, b"\0" * 4))[0]


def unread(sock):
    """Bytes that have arrived at this socket and were not read (SIOCINQ)."""
    return struct.unpack("i", fcntl.ioctl(sock.fileno(), SIOCINQ, b"\0" * 4))[0]


class KernelSocket:
    """A line of /proc/net/tcp."""

    def __init__(self, fields):
        self.local_port = int(fields[1].rsplit(":", 1)[1], 16)
        self.remote_port = int(fields[2].rsplit(":", 1)[1], 16)
        self.state = int(fields[3], 16)
        sending, receiving = fields[4].split(":")
        self.unsent, self.unread = int(sending, 16), int(receiving, 16)


ESTABLISHED, TIME_WAIT, CLOSE_WAIT = 1, 6, 8


def kernel_sockets(local_port):
    """The IPv4 TCP sockets whose local port is this one, in every state."""
    lines = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
    return [found for found in (KernelSocket(line.split()) for line in lines) if found.local_port == local_port]


def other_side(server, sock):
    """The server's kernel socket of this client, or None."""
    port = sock.getsockname()[1]
    return next((found for found in kernel_sockets(server.port) if found.remote_port == port), None)


def free_port(chooser):
    """A port nothing uses, below the range from which the kernel gives ports to others."""
    low = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(200):
        port = chooser.randrange(min(10000, low - 5000), low)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise AssertionError("no free port found in 200 tries")


def push_until_stalled(sockets, limit, chunk, still=STILL):
    """Offers up to `limit` bytes on each socket, never reading, until none takes a byte for `still` seconds.

    Returns how many bytes each socket took, many of them still in the kernel on this side. The bytes are `chunk` over
    and over. The sockets become non-blocking.
    """
    repeated = memoryview(chunk * 2)
    sent = [0] * len(sockets)
    with selectors.DefaultSelector() as ready:
        for index, sock in enumerate(sockets):
            sock.setblocking(False)
            ready.register(sock, selectors.EVENT_WRITE, index)
        moved = time.monotonic()
        while ready.get_map() and time.monotonic() < moved + still:
            for key, _ in ready.select(still / 4):
                index = key.data
                start = sent[index] % len(chunk)
                try:
                    taken = key.fileobj.send(repeated[start:start + min(len(chunk), limit - sent[index])])
                except BlockingIOError:
                    continue
                sent[index] += taken
                moved = time.monotonic()
                if sent[index] >= limit:
                    ready.unregister(key.fileobj)
    return sent


def push_until_paused(test, server, sockets, chunk):
    """Sends on each socket, never reading, until the server leaves bytes unread that have all arrived.

    Unlike push_until_stalled nothing is left on this side, so an end of stream sent now does arrive behind the unread
    bytes. Returns how many bytes each socket sent: the first of the endlessly repeated chunk.
    """
    step = 8 * KIB
    assert len(chunk) % step == 0
    by_port = {sock.getsockname()[1]: index for index, sock in enumerate(sockets)}
    sent = [0] * len(sockets)
    moving = set(range(len(sockets)))
    deadline = time.monotonic() + LATE
    while moving:
        for index in moving:
            start = sent[index] % len(chunk)
            sockets[index].sendall(chunk[start:start + step])
            sent[index] += step
        unread_before, since = None, time.monotonic()
        while True:  # until the server has read everything, or leaves the same bytes for a while
            seen = {by_port[found.remote_port]: found for found in kernel_sockets(server.port)
                    if found.remote_port in by_port and found.state != TIME_WAIT}
            test.assertEqual(len(seen), len(sockets), "every connection is open")
            unread_now = {index: seen[index].unread for index in moving}
            arrived = all(unacknowledged(sockets[index]) == 0 for index in moving)
            if arrived and not any(unread_now.values()):
                break
            if unread_now != unread_before:
                unread_before, since = unread_now, time.monotonic()
            elif arrived and time.monotonic() > since + STILL:
                moving -= {index for index, count in unread_now.items() if count}
                break
            if time.monotonic() > deadline:
                test.fail("the server has neither read everything nor paused in time")
            time.sleep(0.002)
        test.assertLess(max(sent), 64 * MIB, "the server pauses at some time")
    return sent


def drain(test, sock, chunk, expected):
    """Ends the client's stream and reads the echo of the `expected` bytes it sent, the repeated chunk, to its end."""
    sent_hash = hashlib.sha256()
    for _ in range(expected // len(chunk)):
        sent_hash.update(chunk)
    sent_hash.update(chunk[:expected % len(chunk)])
    sock.settimeout(LATE)
    sock.shutdown(socket.SHUT_WR)  # for some the second time, which changes nothing
    came, count = hashlib.sha256(), 0
    while data := sock.recv(256 * KIB):
        came.update(data)
        count += len(data)
    test.assertEqual(count, expected, "bytes back, once the client reads after all")
    test.assertEqual(came.digest(), sent_hash.digest(), "and the right ones")


def queue_in_server(test, server, sock, data, finish=None):
    """Sends the data, never reading, to a server whose high-water mark is above its size: waits until the server has
    read all of it, so that what the kernel does not take is queued in the server, and checks that there is some."""
    feeder = Feeder(test, data, sock.send, finish or (lambda: None))
    test.eventually(lambda: not feeder.is_alive(), "the server takes everything in", LATE)
    test.assertIsNone(feeder.error)
    test.eventually(lambda: unacknowledged(sock) == 0 and other_side(server, sock).unread == 0,
                    "the server has read everything", LATE)
    kernel_has = other_side(server, sock).unsent + unread(sock)
    test.assertLess(kernel_has, len(data) - 512 * KIB, "a part really is queued in the server")


class Feeder(threading.Thread):
    """Writes bytes and then ends the stream, from a thread, so that a reader may start late. `sent` may be watched."""

    def __init__(self, test, data, write, finish):
        super().__init__(daemon=True)
        self.sent = 0
        self.error = None
        self._data, self._write, self._finish = memoryview(data), write, finish
        test.evidence.append(lambda: f"--- feeder: {self.sent} of {len(data)} bytes written, error {self.error!r}")
        self.start()

    def run(self):
        try:
            while self.sent < len(self._data):
                self.sent += self._write(self._data[self.sent:self.sent + 64 * KIB])
        except OSError as error:
            self.error = error
        finally:
            try:
                self._finish()
            except OSError as error:
                self.error = self.error or error

    def wait_stalled(self, still=STILL):
        """Returns when no byte was taken for a while (or all were): by then whoever should read has not begun."""
        last, since = self.sent, time.monotonic()
        while time.monotonic() < since + still and self.is_alive():
            time.sleep(0.01)
            if self.sent != last or self.sent == 0:
                last, since = self.sent, time.monotonic()


class Crowd:
    """Many non-blocking clients, each of which sends one token and is `served` when the token has come back."""

    def __init__(self, test, server, count):
        self.test = test
        self.sockets, self.tokens, self.received = [], [], []
        self.served, self.gone, self.left = set(), set(), set()
        self.ever_served = set()
        self._ready = selectors.DefaultSelector()
        test.addCleanup(self._close)
        test.leaving.append(self._close)
        for _ in range(count):
            self.add(server)

    def _close(self):
        for sock in self.sockets:
            sock.close()
        self._ready.close()

    def add(self, server):
        """One more client; its index. The kernel completes the connection whether or not the server accepts it."""
        index = len(self.sockets)
        sock = connect(server.address)
        sock.setblocking(False)
        token = b"client %d of seed %d\n" % (index, SEED)
        self.sockets.append(sock)
        self.tokens.append(token)
        self.received.append(b"")
        try:
            sock.send(token)
        except OSError:
            self.gone.add(index)
            return index
        self._ready.register(sock, selectors.EVENT_READ, index)
        return index

    @property
    def waiting(self):
        return set(range(len(self.sockets))) - self.served - self.gone - self.left

    def pump(self, seconds=0.0):
        """Takes what has arrived. A closed or reset connection of a client that was not served makes it `gone`."""
        for key, _ in self._ready.select(seconds):
            index = key.data
            try:
                chunk = key.fileobj.recv(4096)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno not in (errno.ECONNRESET, errno.EPIPE):
                    raise
                chunk = b""
            if not chunk:
                self._ready.unregister(key.fileobj)
                self.served.discard(index)
                self.gone.add(index)
                continue
            self.received[index] += chunk
            self.test.assertTrue(self.tokens[index].startswith(self.received[index]),
                                 f"client {index} got bytes it did not send: {self.received[index]!r}")
            if self.received[index] == self.tokens[index]:
                self.served.add(index)
                self.ever_served.add(index)

    def until(self, condition, what, seconds=None):
        """Pumps until the condition holds."""
        deadline = time.monotonic() + (SOON if seconds is None else seconds)
        while not condition():
            if time.monotonic() > deadline:
                self.test.fail(f"did not happen in time: {what}; served {len(self.served)}, waiting "
                               f"{len(self.waiting)}, gone {len(self.gone)}, left {len(self.left)}")
            self.pump(0.02)

    def settle(self, still=STILL):
        """Pumps until nobody has been served or turned away for a while."""
        last, since = None, time.monotonic()
        while time.monotonic() < since + still:
            self.pump(still / 4)
            if (len(self.served), len(self.gone)) != last:
                last, since = (len(self.served), len(self.gone)), time.monotonic()

    def leave(self, indexes, how=socket.socket.close):
        """These clients close (or do what `how` does)."""
        for index in list(indexes):
            if index not in self.gone:
                self._ready.unregister(self.sockets[index])
            how(self.sockets[index])
            self.served.discard(index)
            self.gone.discard(index)
            self.left.add(index)


class Conversation:
    """One client of converse(): what it sends, in which pieces, and what has come back."""

    def __init__(self, sock, data, piece_max, read_max):
        self.sock, self.data, self.piece_max, self.read_max = sock, memoryview(data), piece_max, read_max
        self.sent, self.received, self.over = 0, hashlib.sha256(), False
        self.received_bytes = 0


def converse(test, address, payloads, chooser, piece_max=64 * KIB, read_max=64 * KIB, seconds=LATE):
    """Clients that send in random pieces, read in random pieces, half-close at the end and check every byte."""
    talks = []
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as ready:
        for data in payloads:
            sock = connect(address)
            test.addCleanup(sock.close)
            sock.setblocking(False)
            talk = Conversation(sock, data, piece_max, read_max)
            talks.append(talk)
            ready.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, talk)
        while ready.get_map():
            if time.monotonic() > deadline:
                test.fail("not over in time: " + ", ".join(
                    f"{talk.sent}/{talk.received_bytes} of {len(talk.data)}" for talk in talks if not talk.over))
            for key, events in ready.select(0.2):
                talk = key.data
                if events & selectors.EVENT_WRITE:
                    piece = talk.data[talk.sent:talk.sent + chooser.randint(1, talk.piece_max)]
                    if piece:
                        try:
                            talk.sent += talk.sock.send(piece)
                        except BlockingIOError:
                            pass
                    if talk.sent == len(talk.data):
                        talk.sock.shutdown(socket.SHUT_WR)
                        ready.modify(talk.sock, selectors.EVENT_READ, talk)
                if events & selectors.EVENT_READ:
                    try:
                        chunk = talk.sock.recv(chooser.randint(1, talk.read_max))
                    except BlockingIOError:
                        continue
                    if chunk:
                        talk.received.update(chunk)
                        talk.received_bytes += len(chunk)
                        continue
                    talk.over = True
                    ready.unregister(talk.sock)
                    talk.sock.close()
    for index, talk in enumerate(talks):
        test.assertEqual(talk.received_bytes, len(talk.data), f"bytes back to client {index}")
        test.assertEqual(talk.received.digest(), hashlib.sha256(talk.data).digest(), f"contents back to client {index}")
