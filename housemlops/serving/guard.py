"""Refuse requests before they are read: no key, another origin, too large, no JSON."""

import base64
import binascii
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from housemlops.serving.metrics import Metrics
from housemlops.serving.options import Options
from housemlops.serving.responses import error_response, route_path

WITHOUT_KEY = ("/livez", "/readyz")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
CLIENT_GONE = 499  # counted when nobody is left to be answered

Headers = Mapping[bytes, bytes]


def presented_key(headers: Headers) -> bytes:
    """Return the key that a request presents, or nothing."""
    scheme, _, rest = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip()
    if scheme.lower() == b"basic":
        with suppress(binascii.Error):
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
    return headers.get(b"x-api-key", b"")


def content_type(headers: Headers) -> bytes:
    """Return the type of a body without its parameters."""
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


def is_json(headers: Headers) -> bool:
    """Return whether a body is JSON by its type.

    Clients other than browsers may leave the type out, as Triton's does. A browser
    leaves it out only where a page hides what it sends.
    """
    kind = content_type(headers)
    from_browser = b"origin" in headers or b"sec-fetch-site" in headers
    return kind == b"application/json" or (not kind and not from_browser)


def is_csv(headers: Headers) -> bool:
    """Return whether a body is CSV by its type."""
    return content_type(headers) == b"text/csv"


class BodyTooLarge(Exception):
    """A body of unknown length turned out to be larger than the limit."""


class DirectRoute:
    """Answer a body by a function, with nothing of FastAPI in between."""

    def __init__(self, path: str, answer: Callable[[bytes], Awaitable[Response]]):
        self.path = path
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self  # counted under its path
        parts, more = [], True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        try:
            response = await self.answer(b"".join(parts))
        except HTTPException as error:
            response = error_response(scope, error)
        await response(scope, receive, send)


class Guard:
    """ASGI middleware: check each request, and count its answer.

    A slash at the end of a path makes no difference, and HEAD is GET without a body.

    Args:
        app: What answers the requests that pass.
        options: Of the server.
        metrics: That count the answers.
        direct_routes: Routes that are answered without `app`, for speed.
    """

    def __init__(
        self,
        app: ASGIApp,
        options: Options,
        metrics: Metrics,
        direct_routes: Mapping[tuple[str, str], DirectRoute],
    ):
        self.app = app
        self.metrics = metrics
        self.direct_routes = direct_routes
        self.keys = [key.encode() for key in options.api_keys]
        self.max_bytes = options.max_bytes
        self.origins = {origin.lower() for origin in options.allowed_origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = CLIENT_GONE

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = route_path(scope).rstrip("/") or "/"
        scope = scope | {"path": scope.get("root_path", "") + path}
        if scope["method"] == "HEAD":  # uvicorn sends no body for it
            scope["method"] = "GET"
        try:
            await self.answer(scope, path, receive, send_and_note)
        except ClientDisconnect:
            status = CLIENT_GONE
        self.metrics.count_request(scope, status, time.perf_counter() - started)

    async def answer(
        self, scope: Scope, path: str, receive: Receive, send: Send
    ) -> None:
        """Answer a request, or refuse it."""
        headers = dict(scope["headers"])
        error = self.find_error(scope["method"], path, headers)
        if error:
            await self.drain(receive)
            await error_response(scope, error)(scope, receive, send)
            return
        app = self.direct_routes.get((scope["method"], path), self.app)
        if b"content-length" not in headers:
            receive = self.limit_body(receive)
        try:
            await app(scope, receive, send)
        except BodyTooLarge:
            await error_response(scope, self.too_large())(scope, receive, send)

    def find_error(
        self, method: str, path: str, headers: Headers
    ) -> HTTPException | None:
        """Return why a request is refused without reading it, or None."""
        if self.keys and path not in WITHOUT_KEY and not self.has_key(headers):
            return HTTPException(
                401,
                "this server requires a key: Authorization: Bearer <key>",
                {"WWW-Authenticate": 'Basic realm="House prices"'},
            )
        if method not in SAFE_METHODS:
            if not self.is_allowed_origin(headers):
                return HTTPException(
                    403,
                    "a web page of another origin may not use this server "
                    "(HOUSE_ALLOWED_ORIGINS names those that may)",
                )
            if headers.get(b"content-encoding", b"identity").lower() != b"identity":
                return HTTPException(
                    415, "send the body uncompressed, without Content-Encoding"
                )
            if path == "/invocations":
                if not is_json(headers) and not is_csv(headers):
                    return HTTPException(415, "send application/json or text/csv")
            elif not is_json(headers):
                return HTTPException(415, "send JSON, as application/json")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self.max_bytes:
            return self.too_large()
        return None

    def has_key(self, headers: Headers) -> bool:
        """Return whether a request has one of the keys; compare all in constant time."""
        key = presented_key(headers)
        return any([hmac.compare_digest(key, known) for known in self.keys])

    def is_allowed_origin(self, headers: Headers) -> bool:
        """Return whether a request comes from no page, an own one or an allowed one."""
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if not origin or origin in self.origins:
            return True
        host = headers.get(b"host", b"").decode("latin-1").lower()
        return urlsplit(origin).netloc == host

    def too_large(self) -> HTTPException:
        """Return the error 413."""
        return HTTPException(
            413,
            f"a request has at most {self.max_bytes} bytes",
            {"Connection": "close"},
        )

    async def drain(self, receive: Receive) -> None:
        """Let the sender finish, within limits: else it does not read the answer."""
        left, more = 16 * self.max_bytes, True
        while more and left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            more = message.get("more_body", False)

    def limit_body(self, receive: Receive) -> Receive:
        """Return a `receive` that raises BodyTooLarge beyond the limit."""
        seen = 0

        async def receive_counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                if message.get("more_body"):
                    await self.drain(receive)
                raise BodyTooLarge
            return message

        return receive_counted
