"""Run uvicorn with limits on connections: head bytes, time to arrive, number."""

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from housemlops.serving.options import Options, read_options

LOGGER = logging.getLogger("uvicorn.error")
RESERVED_FILES = 64  # that the log, the model and Python itself may have open


class LimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 with limits on a request's head and on the time the server waits."""

    def __init__(self, options: Options, **uvicorn_arguments):
        super().__init__(**uvicorn_arguments)
        self.options = options
        self.in_head, self.head_bytes = True, 0
        self.waits_since: float | None = None  # for the client to send
        self.blocked_since: float | None = None  # for the client to read

    def connection_made(self, transport) -> None:
        """Note the time; if there are too many, close the one that waits longest."""
        super().connection_made(transport)
        self.waits_since = self.loop.time()
        if len(self.connections) > self.options.max_connections:
            waiting = [one for one in self.connections if one.waits_since is not None]
            min(waiting, key=lambda one: one.waits_since).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, a head only up to its limit."""
        if self.in_head and not self.head_bytes and self.waits_since is not None:
            self.waits_since = self.loop.time()
        while data and not self.transport.is_closing():
            size = len(data)
            if self.in_head:
                size = self.options.max_header_bytes - self.head_bytes
                if not size:
                    self.refuse(431, "the request line and headers are too long")
                    return
                self.head_bytes += len(data[:size])
            super().data_received(data[:size])
            data = data[size:]

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self.waits_since is None:
            self.waits_since = self.loop.time()

    def on_headers_complete(self) -> None:
        self.in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """From here the client waits for the server."""
        self.in_head, self.head_bytes, self.waits_since = True, 0, None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """From here the server waits for the client, unless it has sent more."""
        if self.waits_since is None and not self.pipeline:
            self.waits_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self.blocked_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self.blocked_since = None
        super().resume_writing()

    def end_if_late(self) -> None:
        """Close the connection if its client has kept the server waiting too long."""
        earliest = self.loop.time() - self.options.request_seconds
        if self.blocked_since is not None and self.blocked_since < earliest:
            self.transport.abort()
        elif self.waits_since is not None and self.waits_since < earliest:
            self.refuse(408, "the request took too long to arrive")

    def refuse(self, status: int, detail: str) -> None:
        """Answer an incomplete request, if nothing was sent yet, and close."""
        answering = self.cycle is not None and not self.cycle.response_complete
        answer_begun = answering and self.cycle.response_started
        if answering:
            self.cycle.disconnected = True
        if self.transport.is_closing() or (not self.head_bytes and self.in_head):
            self.transport.abort()
            return
        if not answer_begun:
            body = json.dumps({"detail": detail})
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
                "Content-Type: application/json",
                f"Content-Length: {len(body)}",
                "Connection: close",
                "",
                body,
            )
            self.transport.write("\r\n".join(head).encode())
        self.transport.close()


class LimitedServer(uvicorn.Server):
    """A server that looks once a second for clients that keep it waiting."""

    async def shutdown(self, sockets=None) -> None:
        """Stop; close incomplete requests half a second before the grace ends."""
        grace = self.config.timeout_graceful_shutdown - 0.5
        asyncio.get_running_loop().call_later(max(0, grace), self.close_incomplete)
        await super().shutdown(sockets)

    def close_incomplete(self) -> None:
        """Close the connections whose requests are not complete."""
        for connection in list(self.server_state.connections):
            if connection.waits_since is not None:
                connection.refuse(503, "the server is stopping")

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            for connection in list(self.server_state.connections):
                connection.end_if_late()
        return await super().on_tick(counter)


def allowed_connections(wanted: int) -> int:
    """Raise the limit on open files if possible; return how many connections fit."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = wanted + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < files:
        soft = files if hard == resource.RLIM_INFINITY else min(files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= files:
        return wanted
    return max(1, soft - RESERVED_FILES)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser("app.py", description="The prediction server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8800)
    parser.add_argument(
        "--root-path",
        default="",
        type=lambda text: f"/{text.strip('/')}".rstrip("/"),
        help="prefix that a proxy cuts off",
    )
    parser.add_argument("--log-level", default="info", choices=["info", "warning"])
    return parser


def run_server(app: ASGIApp, home: Path, arguments: Sequence[str]) -> None:
    """Run a server with its limits until it is told to stop.

    Args:
        app: From `create_app`.
        home: Folder of the program.
        arguments: Of the command line.
    """
    parsed = make_parser().parse_args(arguments)
    options = read_options(os.environ, home)
    connections = allowed_connections(options.max_connections)
    limited = options.model_copy(update={"max_connections": connections})
    config = uvicorn.Config(
        app,
        host=parsed.host,
        port=parsed.port,
        root_path=parsed.root_path,
        log_level=parsed.log_level,
        access_log=False,
        proxy_headers=False,  # neither a client's address nor its scheme matters here
        http=partial(LimitedProtocol, limited),
        ws="none",
        timeout_keep_alive=options.keep_alive_seconds,
        timeout_graceful_shutdown=options.grace_seconds,
    )
    if connections < options.max_connections:
        LOGGER.warning(
            "The system allows for %s connections at a time, not %s (see ulimit -n).",
            connections,
            options.max_connections,
        )
    server = LimitedServer(config)
    server.run()
    if not server.started:
        sys.exit(3)
