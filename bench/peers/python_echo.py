#!/usr/bin/env python3
"""Echo in a few lines of Python: a control, not a peer. It shows how large a difference the measurement can show at all; README.md has the numbers.

Unbounded patience with a client that does not read: sendall blocks everybody. Nothing but a measurement should use it.
"""

import os
import select
import signal
import socket


def main():
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(f"listening on 127.0.0.1:{listener.getsockname()[1]} (backend python)", flush=True)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    clients = {}
    while True:
        for descriptor, _ in epoll.poll():
            client = clients.get(descriptor)
            if client is None:
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients[client.fileno()] = client
                epoll.register(client, select.EPOLLIN)
            elif data := client.recv(65536):
                client.sendall(data)
            else:
                del clients[descriptor]
                client.close()


main()
