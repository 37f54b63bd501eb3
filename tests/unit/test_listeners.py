"""The two listeners: what the public one answers, and who may use the private one."""

import asyncio

import pytest

from server.superlink import PRIVATE_HEADER, FleetOnly, LinkSettings, SecretOnly

SECRET = "s" * 64


def ask(app, path, *, kind="http", headers=()):
    """Status that an ASGI application answers with."""
    answers = []

    async def send(message):
        answers.append(message)

    async def call():
        scope = {"type": kind, "path": path, "headers": list(headers)}
        await app(scope, None, send)

    asyncio.run(call())
    return answers[0]["status"]


async def everything(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/v1/fleet/activate-node"])
def test_public_listener_answers_nodes(path):
    assert ask(FleetOnly(everything), path) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/docs",
        "/openapi.json",
        "/health",
        "/",
        "/v1/fleet",
        "//v1/fleet/pull-messages",
        "/V1/FLEET/pull-messages",
    ],
)
def test_public_listener_answers_nobody_else(path):
    assert ask(FleetOnly(everything), path) == 404
    assert ask(FleetOnly(everything), path, kind="websocket") == 404


def test_private_listener_wants_the_secret():
    app = SecretOnly(everything, SECRET)
    header = PRIVATE_HEADER.encode()
    assert ask(app, "/v1/control/start-run") == 401
    assert ask(app, "/v1/control/start-run", headers=[(header, b"s" * 63)]) == 401
    assert ask(app, "/v1/control/start-run", headers=[(header, SECRET.encode())]) == 200
    assert ask(app, "/health") == 200


def test_secret_is_not_in_what_is_logged(tmp_path):
    settings = LinkSettings(
        database=tmp_path / "a.db",
        host="127.0.0.1",
        port=1,
        private_port=2,
        health_port=0,
        certificate=tmp_path / "a.crt",
        key=tmp_path / "a.key",
        secret=SECRET,
    )
    assert SECRET not in repr(settings)
