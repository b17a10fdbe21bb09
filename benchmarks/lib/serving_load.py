"""Requests over HTTP/1.1 connections that are kept alive, as many at once as asked for; the standard library only, to leave the server the machine"""

import re
import selectors
import socket
import time
from itertools import cycle

WARM_UP = 1.0  # seconds
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Connection:
    "One HTTP/1.1 connection, kept alive"

    def __init__(self, port: int):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, request: bytes) -> None:
        self.received, self.sent = b"", time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bytes | None:  # the body; None while it is not all here
        "Take what has come, headers and body in however many pieces"
        piece = self.socket.recv(1 << 16)
        self.received += piece
        head, blank, body = self.received.partition(b"\r\n\r\n")
        if not piece:
            raise ConnectionError(
                "the connection was closed before the answer was complete"
            )
        if not blank or len(body) < int(LENGTH.search(head)[1]):
            return None
        if not head.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError(
                f"the answer was {head.decode().splitlines()[0]}: {body[:200].decode()}"
            )
        return body

    def ask(self, request: bytes) -> bytes:  # the body
        self.send(request)
        while (body := self.receive()) is None:
            pass
        return body


def load(
    port: int, requests: list[bytes], connections: int, seconds: float, least: int
) -> tuple[list[float], float]:  # seconds of each answer; of all
    "Keep so many requests in flight for so long, and until there are `least` answers, but at most five times as long"
    selector, houses, took = selectors.DefaultSelector(), cycle(requests), []
    for _ in range(connections):
        connection = Connection(port)
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.send(next(houses))
    start = now = time.perf_counter() + WARM_UP
    while now < start + seconds or (len(took) < least and now < start + 5 * seconds):
        for key, _ in selector.select(60):
            if key.data.receive() is None:
                continue
            now = time.perf_counter()
            if now >= start:
                took.append(now - key.data.sent)
            key.data.send(next(houses))
    return took, now - start
