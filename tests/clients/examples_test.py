"""Each program of examples/ does what its first lines say."""

import os
import re
import signal
import socket
import struct
import subprocess
import tempfile
import time
import unittest
import zlib

import support

EXAMPLES = os.path.join(os.path.dirname(support.BINARY), "examples")


class Example:
    """A running example; leaves nothing behind."""

    def __init__(self, name, *arguments, **options):
        self.process = subprocess.Popen([os.path.join(EXAMPLES, name), *arguments], stdout=subprocess.PIPE, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def address(self):
        """Where it says it listens: a (host, port) pair, or a path."""
        line = self.process.stdout.readline().decode()
        found = re.fullmatch(r"listening on (?:unix:(.+)|([^ ]+):(\d+))\n", line)
        assert found is not None, line
        return found[1] if found[1] else (found[2], int(found[3]))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(support.LATE)


def connect(address):
    kind = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    client = socket.socket(kind)
    client.settimeout(support.LATE)
    client.connect(address)
    return client


def packet(code, body=b"", length=None, checksum=None):
    """A packet of the packet server: its header by struct, its checksum by zlib."""
    return struct.pack(">HHI", 8 + len(body) if length is None else length, code,
                       zlib.crc32(body) if checksum is None else checksum) + body


def credentials(name, password):
    return bytes([len(name)]) + name + bytes([len(password)]) + password


def line_of(file):
    return file.readline().decode()


class ExamplesTest(unittest.TestCase):
    def test_chat_tells_the_others_what_one_says_and_who_comes_and_goes(self):
        with Example("chat", "127.0.0.1:0") as server:
            address = server.address()
            with connect(address) as ann, connect(address) as bob:
                ann_reads, bob_reads = ann.makefile("rb"), bob.makefile("rb")
                names = [re.fullmatch(r"you are (.+)\n", line_of(file))[1] for file in (ann_reads, bob_reads)]
                self.assertEqual(line_of(ann_reads), f"{names[1]} has come\n")
                bob.sendall(b"hello, ")
                bob.sendall(b"all\nbye\n")
                self.assertEqual(line_of(ann_reads), f"{names[1]}: hello, all\n")
                self.assertEqual(line_of(ann_reads), f"{names[1]}: bye\n")
                bob.shutdown(socket.SHUT_WR)
                self.assertEqual(bob_reads.read(), b"", "one does not read oneself")
                self.assertEqual(line_of(ann_reads), f"{names[1]} has gone\n")
                ann_reads.close()
                bob_reads.close()
            self.assertEqual(server.stop(), 0)

    def test_the_time_server_sends_four_bytes_and_the_end(self):
        with Example("time_server", "127.0.0.1:0") as server:
            with connect(server.address()) as client:
                before = time.time()
                answer = support.receive_to_end(client)
            self.assertEqual(len(answer), 4)
            seconds = int.from_bytes(answer, "big") - 2_208_988_800 % 2**32
            self.assertLessEqual(abs(seconds - before), 60)
            self.assertEqual(server.stop(), 0)

    def test_daytime_serves_a_unix_path_and_removes_it(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "daytime")
            with Example("daytime", "unix:" + path) as server:
                self.assertEqual(server.address(), path)
                with connect(path) as client:
                    answer = support.receive_to_end(client).decode()
                self.assertRegex(answer, r"^\w+day, \w+ \d\d, \d{4} \d\d:\d\d:\d\d-UTC\r\n$")
                self.assertEqual(server.stop(), 0)
            self.assertFalse(os.path.exists(path))

    def test_the_file_sender_sends_every_byte(self):
        with tempfile.NamedTemporaryFile() as file:
            content = bytes(range(253)) * 12_000  # 3 MB, no multiple of a piece
            for size in (len(content), 256 * 1024, 0):
                file.seek(0)
                file.truncate()
                file.write(content[:size])
                file.flush()
                with Example("file_sender", file.name, "127.0.0.1:0") as server:
                    with connect(server.address()) as client:
                        self.assertTrue(support.receive_to_end(client) == content[:size], size)
                    self.assertEqual(server.stop(), 0)

    def test_the_file_sender_says_what_it_cannot_do(self):
        for arguments, code in (([], 2), (["/no/such/file"], 1)):
            result = subprocess.run([os.path.join(EXAMPLES, "file_sender"), *arguments], capture_output=True,
                                    timeout=support.LATE, check=False)
            self.assertEqual(result.returncode, code)
            self.assertNotEqual(result.stderr, b"")

    def test_the_calculator_answers_line_by_line_however_they_are_cut(self):
        cases = {
            "1 + 2": "3", "2 * 21": "42", "7 / -2": "-3", "5 - 9": "-4", " 1  +  1 ": "2", "1 / 0": "error: division by zero",
            "9223372036854775807 + 1": "error: too large", "-9223372036854775808 / -1": "error: too large",
            "1 ? 2": "error: the operations are + - * /", "one": "error: write NUMBER + NUMBER", "": "error: write NUMBER + NUMBER",
        }
        text = "".join(line + "\r\n" for line in cases).encode()
        wanted = "".join(answer + "\n" for answer in cases.values()).encode()
        with Example("calculator", "127.0.0.1:0") as server:
            address = server.address()
            for step in (1, 7, len(text)):
                with connect(address) as client:
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    for at in range(0, len(text), step):
                        client.sendall(text[at:at + step])
                    client.shutdown(socket.SHUT_WR)
                    self.assertEqual(support.receive_to_end(client), wanted)
            with connect(address) as client:  # a line without an end
                client.sendall(b"1" * 5000)
                self.assertEqual(support.receive_to_end(client), b"")
            self.assertEqual(server.stop(), 0)

    def test_prime_factors_come_in_the_order_of_the_lines_whatever_they_take(self):
        cases = {
            "91": "91 = 7 * 13", "999966000289": "999966000289 = 999983 * 999983", "2": "2 = 2", "1024": "1024 = " + " * ".join("2" * 10),
            "one": "error: write a number from 2 to 18446744073709551615", "1999967": "1999967 = 179 * 11173", "49": "49 = 7 * 7",
        }
        text = "".join(line + "\r\n" for line in cases).encode() * 20
        wanted = "".join(answer + "\n" for answer in cases.values()).encode() * 20
        with Example("prime_factors", "127.0.0.1:0") as server:
            address = server.address()
            clients = [connect(address) for _ in range(4)]
            for client in clients:
                client.sendall(text)
                client.shutdown(socket.SHUT_WR)
            for client in clients:
                with client:
                    self.assertEqual(support.receive_to_end(client), wanted)
            self.assertEqual(server.stop(), 0)

    def test_the_packet_server_speaks_bytes_of_struct_and_zlib_however_they_are_cut(self):
        register, login, ping, reply = 1, 2, 3, 100
        everything = bytes(range(256))
        largest = everything * 255 + everything[:247]  # a packet of 65,535 bytes
        talk = [
            (packet(register, credentials(b"ann", b"secret")), packet(reply + register, b"\0")),
            (packet(register, credentials(b"ann", b"other")), packet(reply + register, b"\1")),
            (packet(login, credentials(b"ann", b"wrong")), packet(reply + login, b"\1")),
            (packet(login, credentials(b"ann", b"secret")), packet(reply + login, b"\0")),
            (packet(login, credentials(b"ann", b"secret")), packet(reply + login, b"\2")),
            (packet(ping), packet(reply + ping)),
            (packet(ping, everything), packet(reply + ping, everything)),
        ]
        with Example("packet_server", "127.0.0.1:0") as server:
            address = server.address()
            for step in (1, 3, 8, 9, 10_000):
                requests = b"".join(request for request, _ in talk)
                wanted = b"".join(answer for _, answer in talk)
                with connect(address) as client:
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    for at in range(0, len(requests), step):
                        client.sendall(requests[at:at + step])
                    client.shutdown(socket.SHUT_WR)
                    self.assertEqual(support.receive_to_end(client), wanted, step)
                self.assertEqual(line_of(server.process.stdout), "closed: eof\n")
                talk[0] = (talk[0][0], packet(reply + register, b"\1"))  # the account is there by now
            with connect(address) as client:
                client.sendall(packet(login, credentials(b"ann", b"secret")) + packet(ping, largest) * 3)
                self.assertTrue(support.receive_exactly(client, 9 + 3 * 65_535) ==
                                packet(reply + login, b"\0") + packet(reply + ping, largest) * 3)
            self.assertEqual(line_of(server.process.stdout), "closed: eof\n")
            self.assertEqual(server.stop(), 0)
            self.assertEqual(line_of(server.process.stdout), "register 10, login 16, ping 13, other codes 0\n")

    def test_the_packet_server_closes_whoever_breaks_the_rules_and_says_why(self):
        good = packet(1, credentials(b"bob", b"secret"))
        cases = {
            packet(4): "no handler for this message code",
            packet(1, b"x", length=7): "the length of a frame is smaller than what it has to count",
            packet(1, b"x", length=0): "the length of a frame is smaller than what it has to count",
            packet(1, b"body", checksum=1): "the checksum of a frame is wrong",
            packet(2, b"\3ab"): "the body of a message is not of the type that its code announces",
            packet(2, credentials(b"ann", b"x") + b"more"): "the body of a message is not of the type that its code announces",
            packet(3, b"before the login"): "Permission denied",
        }
        with Example("packet_server", "127.0.0.1:0") as server:
            address = server.address()
            answer = packet(101, b"\0")
            for bad, why in cases.items():
                with connect(address) as client:
                    client.sendall(good + bad + good)
                    self.assertEqual(support.receive_to_end(client), answer, "what came before is answered, nothing else")
                self.assertEqual(line_of(server.process.stdout), f"closed: protocol: {why}\n")
                answer = packet(101, b"\1")  # the account is there by now
            with connect(address) as client:
                client.sendall(good[:-1])
                client.shutdown(socket.SHUT_WR)
                self.assertEqual(support.receive_to_end(client), b"")
            self.assertEqual(line_of(server.process.stdout), "closed: truncated\n")
            self.assertEqual(server.stop(), 0)

    def test_the_client_sends_lines_prints_answers_and_connects_again(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(support.LATE)
            address = "127.0.0.1:%d" % listener.getsockname()[1]
            with Example("client", address, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as client:
                for round_number in range(2):
                    server, _ = listener.accept()
                    with server:
                        server.settimeout(support.LATE)
                        self.assertIn("connected", line_of(client.process.stderr))
                        client.process.stdin.write(b"line %d\n" % round_number)
                        client.process.stdin.flush()
                        self.assertEqual(server.recv(100), b"line %d\n" % round_number)
                        server.sendall(b"answer %d\n" % round_number)
                        self.assertEqual(line_of(client.process.stdout), f"answer {round_number}\n")
                        if round_number == 1:
                            client.process.stdin.close()
                            self.assertEqual(server.recv(100), b"", "the end of the input is passed on")
                    self.assertIn("disconnected", line_of(client.process.stderr))
                client.process.stdin = None
                self.assertEqual(client.process.wait(support.LATE), 0)


if __name__ == "__main__":
    unittest.main()
