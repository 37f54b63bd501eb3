"""Pages on the loopback interface: only this machine's own page, nothing from elsewhere.

A page of another site in the same browser can send requests to 127.0.0.1, and by rebinding its own
name to 127.0.0.1 can read the answers. Both are stopped by the names in Host and Origin.
"""

import socket
from importlib import resources

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ConfigError

LOOPBACK = "127.0.0.1"
MOST_BODY_BYTES = 16_384

READING, READING_AND_WRITING = frozenset({"GET"}), frozenset({"GET", "HEAD", "POST"})
"""Methods that a page answers."""

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class Guard:
    """ASGI middleware that every request and answer of a page passes.

    Args:
        app: what is guarded.
        port: of the page; part of the names that it answers to.
        methods: that are let through.
    """

    def __init__(
        self, app: ASGIApp, port: int, *, methods: frozenset[str] = READING_AND_WRITING
    ) -> None:
        self._app, self._methods = app, methods
        self._hosts = frozenset(f"{name}:{port}" for name in (LOOPBACK, "localhost"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it; add the headers to whatever is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
            await send(message)

        refusal = self._refusal(Headers(scope=scope), str(scope["method"]))
        answer: ASGIApp = self._app if refusal is None else JSONResponse(*refusal)
        await answer(scope, receive, send_with_headers)

    def _refusal(self, headers: Headers, method: str) -> tuple[dict[str, str], int] | None:
        if headers.get("host", "") not in self._hosts:
            return {"detail": "This page answers under its own address only."}, 421
        if method not in self._methods:
            return {"detail": f"Allowed: {', '.join(sorted(self._methods))}."}, 405
        if method in ("GET", "HEAD"):
            return None
        origin = headers.get("origin")
        if origin is not None and origin.removeprefix("http://") not in self._hosts:
            return {"detail": "Requests come from this page only."}, 403
        length = headers.get("content-length", "")
        if not length.isdigit() or int(length) > MOST_BODY_BYTES:
            return {"detail": f"At most {MOST_BODY_BYTES} bytes, with their length said."}, 413
        return None


def listening_socket(port: int, option: str = "--port") -> socket.socket:
    """A socket that listens on a port of 127.0.0.1; its owner closes it.

    Args:
        port: 0 is any free one.
        option: of the command that named the port, for the error.

    Raises:
        ConfigError: the port is taken.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
        listener.listen()
    except OSError as error:
        listener.close()
        problem = f"the port cannot be used: {error.strerror}"
        raise ConfigError(problem, where=f"{option} {port}", allowed="a free port") from error
    return listener


def address_of(listener: socket.socket) -> str:
    """What to type into a browser."""
    return f"http://{LOOPBACK}:{listener.getsockname()[1]}/"


def serve_on(listener: socket.socket, app: ASGIApp, *, ending_s: int = 5) -> None:
    """Serve an application until interrupted; then its open requests have ``ending_s`` seconds."""
    import uvicorn

    config = uvicorn.Config(
        app,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=ending_s,
    )
    uvicorn.Server(config).run(sockets=[listener])


def static_file(package: str, name: str) -> bytes:
    """A file of a package's folder ``static``."""
    return (resources.files(package) / "static" / name).read_bytes()
