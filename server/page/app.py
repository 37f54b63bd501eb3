"""The page's HTTP side: it is read, and nothing else can be done with it.

``/events`` sends the whole document to whoever connects, and from then on the fields that have
changed; between changes a sign of life, so that a page knows that it is still connected.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from iedn.loopback import READING, Guard, static_file
from server.status import Document

from .feed import LOOK_S, PROBLEM, Feed, Look

STATIC = {
    "style.css": "text/css",
    "main.js": "text/javascript",
    "connection.js": "text/javascript",
    "curves.js": "text/javascript",
    "elements.js": "text/javascript",
    "formats.js": "text/javascript",
    "sections.js": "text/javascript",
    "topline.js": "text/javascript",
}
"""All files that are served; an address that is not among them does not exist."""

ALIVE_S = 5.0
_RETRY_MS = 2000
_PACKAGE = "server.page"


def create_app(look: Callable[[], Document], port: int) -> Guard:
    """The application that serves one run's page.

    Args:
        look: gives the document of the run.
        port: of the page; part of the addresses that are answered.
    """
    app = Starlette(
        routes=[
            Route("/", _page),
            Route("/static/{name}", _static),
            Route("/status.json", _status),
            Route("/events", _events),
        ]
    )
    app.state.feed = Feed(look)
    return Guard(app, port, methods=READING)


def _page(_request: Request) -> Response:
    return Response(static_file(_PACKAGE, "index.html"), media_type="text/html; charset=utf-8")


def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in STATIC:
        return JSONResponse({"detail": "There is no such file."}, 404)
    return Response(static_file(_PACKAGE, name), media_type=STATIC[name])


def _status(request: Request) -> Response:
    look = request.app.state.feed.latest()
    if look.problem:
        return JSONResponse({"detail": PROBLEM}, 503)
    return JSONResponse(look.document)


async def _events(request: Request) -> Response:
    stream = changes(request.app.state.feed, pause=asyncio.sleep)
    return StreamingResponse(stream, media_type="text/event-stream")


async def changes(feed: Feed, *, pause: Callable[[float], Any]) -> AsyncIterator[str]:
    """The stream of one page that is open, until it is closed.

    Args:
        feed: of the run.
        pause: waits so many seconds.
    """
    yield f"retry: {_RETRY_MS}\n\n"
    seen, quiet_s = Look(0, {}), 0.0
    while True:
        look = await run_in_threadpool(feed.latest)
        if look.number != seen.number:
            for message in _messages(look, seen):
                yield message
            seen, quiet_s = look, 0.0
        elif quiet_s >= ALIVE_S:
            yield _event("alive", {"time": time.time()})
            quiet_s = 0.0
        await pause(LOOK_S)
        quiet_s += LOOK_S


def _messages(look: Look, seen: Look) -> list[str]:
    messages = []
    if look.problem != seen.problem:
        messages.append(_event("problem", {"problem": look.problem, "time": time.time()}))
    changed = look.changes_since(seen)
    if changed:
        kind = "change" if seen.document else "document"
        content = {"time": time.time(), "fields": changed}
        messages.append(f"id: {look.number}\n{_event(kind, content)}")
    return messages


def _event(kind: str, content: Document) -> str:
    return f"event: {kind}\ndata: {json.dumps(content)}\n\n"
