"""The page's HTTP side: addresses, bodies, the cookie. What is allowed stands in ``desk``."""

import logging
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import APIRouter, Cookie, Depends, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, StrictInt

from iedn.config import FrozenModel
from iedn.errors import IednError

from .desk import Desk, RatingError
from .guard import Guard

COOKIE = "iedn_rating"
STATIC = {
    "style.css": "text/css",
    "main.js": "text/javascript",
    "api.js": "text/javascript",
    "form.js": "text/javascript",
    "viewer.js": "text/javascript",
    "vendor/niivue.js": "text/javascript",
    "vendor/LICENSES.txt": "text/plain",
}
"""All files that are served; an address that is not among them does not exist."""

router = APIRouter(prefix="/api")
_log = logging.getLogger(__name__)


class Token(FrozenModel):
    """A personal token."""

    token: str = Field(min_length=1, max_length=200)


class Answers(FrozenModel):
    """A judgement: score by question; how many judgements of the case the page knew of."""

    answers: dict[str, StrictInt] = Field(max_length=16)
    revision: StrictInt = Field(ge=0)


def _desk(request: Request) -> Desk:
    return cast("Desk", request.app.state.desk)


TheDesk = Annotated[Desk, Depends(_desk)]
Key = Annotated[str | None, Cookie(alias=COOKIE)]


def create_app(
    folder: Path, port: int, *, idle: timedelta = timedelta(hours=1), clock: Any = None
) -> Guard:
    """The application that serves one study.

    Args:
        folder: the study's.
        port: of the page; part of the addresses that are answered.
        idle: how long a session lasts without a request.
        clock: gives the time, UTC; by default the machine's.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.desk = Desk(folder, idle=idle, now=clock or (lambda: datetime.now(UTC)))
    app.include_router(router)
    app.add_exception_handler(RatingError, _refused)
    app.add_exception_handler(IednError, _failed)
    app.add_api_route("/", _page, methods=["GET"])
    app.add_api_route("/static/{name:path}", _static, methods=["GET"])
    hosts = frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost"))
    return Guard(app, hosts)


@router.post("/login", status_code=204)
def login(body: Token, desk: TheDesk, response: Response) -> None:
    """Exchange a personal token for a session."""
    key = desk.login(body.token)
    response.set_cookie(COOKIE, key, httponly=True, samesite="strict", path="/api")


@router.post("/logout", status_code=204)
def logout(desk: TheDesk, response: Response, key: Key = None) -> None:
    """End the session."""
    desk.logout(key)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict", path="/api")


@router.get("/state")
def state(
    desk: TheDesk, key: Key = None, position: Annotated[int | None, Query(ge=0)] = None
) -> dict[str, Any]:
    """What the page shows."""
    return desk.state(key, position)


@router.get("/items/{item}/volumes/{pane}.nii")
def volume(item: str, pane: str, desk: TheDesk, key: Key = None) -> Response:
    """One volume of a task."""
    content = desk.volume(key, item, pane)
    return Response(content, media_type="application/octet-stream")


@router.post("/items/{item}/drawn", status_code=204)
def drawn(item: str, desk: TheDesk, key: Key = None) -> None:
    """Both maps are on the screen."""
    desk.drawn(key, item)


@router.post("/items/{item}/scores", status_code=204)
def scores(item: str, body: Answers, desk: TheDesk, key: Key = None) -> None:
    """A judgement."""
    desk.submit(key, item, body.answers, body.revision)


@router.post("/finish", status_code=204)
def finish(desk: TheDesk, key: Key = None) -> None:
    """End the present session for good."""
    desk.finish(key)


@router.post("/join", status_code=204)
def join(body: Token, desk: TheDesk, key: Key = None) -> None:
    """The second reader sits down for the discussion."""
    desk.join(key, body.token)


def _page() -> Response:
    return Response(_content("index.html"), media_type="text/html; charset=utf-8")


def _static(name: str) -> Response:
    if name not in STATIC:
        raise RatingError(404, "There is no such file.")
    return Response(_content(name), media_type=STATIC[name])


def _content(name: str) -> bytes:
    return (resources.files(__package__) / "static" / name).read_bytes()


def _refused(_request: Request, error: Exception) -> JSONResponse:
    refused = cast("RatingError", error)
    return JSONResponse({"detail": str(refused)}, refused.status)


def _failed(_request: Request, error: Exception) -> JSONResponse:
    """What went wrong names files, and goes to the operator's terminal only."""
    _log.error("%s", error)
    sentence = "The study's files cannot be read or written; tell who runs the study."
    return JSONResponse({"detail": sentence}, 500)
