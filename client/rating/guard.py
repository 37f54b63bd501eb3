"""What every request and answer passes: only this machine's own page, nothing from elsewhere.

A page of another site in the same browser can send requests to 127.0.0.1, and by rebinding its own
name to 127.0.0.1 can read the answers. Both are stopped by the names in Host and Origin.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BODY_BYTES = 16_384

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
    """ASGI middleware.

    Args:
        app: what is guarded.
        hosts: allowed values of the Host header, with the port.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app, self._hosts = app, hosts

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
        if method in ("GET", "HEAD"):
            return None
        origin = headers.get("origin")
        if origin is not None and origin.removeprefix("http://") not in self._hosts:
            return {"detail": "Requests come from this page only."}, 403
        length = headers.get("content-length", "")
        if not length.isdigit() or int(length) > MOST_BODY_BYTES:
            return {"detail": f"At most {MOST_BODY_BYTES} bytes, with their length said."}, 413
        return None
