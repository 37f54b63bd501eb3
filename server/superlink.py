"""The process that sites talk to: Flower's SuperLink behind two listeners.

Stock SuperLink serves everything on one port and asks nobody who they are, except nodes: whoever
holds the authority's certificate may start a run of their own. Here the public TLS listener
answers under ``/v1/fleet/`` only, where every call is signed by a registered node; all the rest
is on the loopback interface, for whoever holds this start's secret.

Started by ``server.link``, which sends the settings to standard input.
"""

import asyncio
import hmac
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import Field

from iedn.config import FrozenModel
from iedn.process import end_with_parent

PRIVATE_HEADER = "x-iedn-secret"
BUSY_TIMEOUT_MS = 120_000
"""Flower waits 5 s for its own database, and ends runs over it on a busy machine."""

_PUBLIC_PREFIX = "/v1/fleet/"
_OPEN_PATHS = frozenset({"/health"})
_LOOPBACK = "127.0.0.1"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class LinkSettings(FrozenModel):
    """What the process is told at its start.

    Attributes:
        database: SQLite file of nodes, runs and messages.
        host: interface of the public listener.
        port: its port.
        private_port: loopback port of everything else.
        health_port: loopback port of ``grpc.health.v1``; 0 is off.
        certificate: server's certificate chain, PEM.
        key: its private key, PEM.
        secret: what callers of the private listener have to show.
    """

    database: Path
    host: str
    port: int
    private_port: int
    health_port: int
    certificate: Path
    key: Path
    secret: str = Field(min_length=32, repr=False)


class FleetOnly:
    """Answers 404 to everything but the calls of registered nodes."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on, or end it."""
        if _is_call(scope) and not str(scope["path"]).startswith(_PUBLIC_PREFIX):
            await _answer(send, 404)
            return
        await self._app(scope, receive, send)


class SecretOnly:
    """Answers 401 to callers that do not hold the secret; being alive is no secret."""

    def __init__(self, app: AsgiApp, secret: str) -> None:
        self._app = app
        self._secret = secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on, or end it."""
        if _is_call(scope) and scope["path"] not in _OPEN_PATHS and not self._holds(scope):
            await _answer(send, 401)
            return
        await self._app(scope, receive, send)

    def _holds(self, scope: Scope) -> bool:
        shown = dict(scope["headers"]).get(PRIVATE_HEADER.encode(), b"")
        return hmac.compare_digest(shown, self._secret)


def _is_call(scope: Scope) -> bool:
    return scope["type"] in ("http", "websocket")


async def _answer(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def listeners(settings: LinkSettings) -> tuple[uvicorn.Server, uvicorn.Server]:
    """The private and the public listener of one SuperLink.

    TLS files are read here; a wrong one ends the start.
    """
    app = _superlink(settings)
    common: dict[str, Any] = {"log_level": "warning", "timeout_graceful_shutdown": 2}
    private = uvicorn.Config(
        SecretOnly(app, settings.secret), host=_LOOPBACK, port=settings.private_port, **common
    )
    public = uvicorn.Config(
        FleetOnly(app),
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.certificate,
        ssl_keyfile=str(settings.key),
        lifespan="off",  # the private listener's start is the application's
        server_header=False,
        **common,
    )
    return uvicorn.Server(private), uvicorn.Server(public)


def _superlink(settings: LinkSettings) -> AsgiApp:
    from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
    from flwr.superlink.cli import flower_superlink  # noqa: F401  (loads the module below)
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
    from flwr.superlink.main import create_app

    _wait_longer_for_the_database()
    _refuse_replies_in_anothers_name()
    health = f"{_LOOPBACK}:{settings.health_port}" if settings.health_port else None
    config = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=health,
        host=_LOOPBACK,
        port=settings.private_port,
        insecure=False,
        certificates=None,
        superexec_auth_secret=settings.secret.encode(),
        authn_plugin=load_control_authn_plugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(settings.database),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    lifespan = sys.modules["flwr.superlink.cli.flower_superlink"].SuperLinkLifespan
    app: AsgiApp = create_app(config, lifespan)
    return app


def _wait_longer_for_the_database() -> None:
    from flwr.supercore import sql_mixin
    from flwr.supercore.constant import SQLITE_PRAGMAS

    pragmas = tuple(
        (name, str(BUSY_TIMEOUT_MS) if name == "busy_timeout" else value)
        for name, value in SQLITE_PRAGMAS
    )
    vars(sql_mixin)["SQLITE_PRAGMAS"] = pragmas


def _refuse_replies_in_anothers_name() -> None:
    """Flower 1.41 checks who sends, but not that a reply names its sender as its author."""
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from flwr.superlink.servicer.fleet import fleet_handlers
    from starlette.exceptions import HTTPException

    push = fleet_handlers.push_messages

    def push_own_messages(request: PushMessagesRequest, state: Any) -> Any:
        sender = request.node.node_id
        if any(m.metadata.src_node_id != sender for m in request.messages_list):
            raise HTTPException(401, "a reply in the name of another node")
        return push(request, state)

    vars(fleet_handlers)["push_messages"] = push_own_messages


async def _serve(settings: LinkSettings) -> None:
    private, public = listeners(settings)
    await asyncio.gather(private.serve(), public.serve())


def main() -> None:
    """Serve until told to end, or until the parent is gone."""
    end_with_parent()
    settings = LinkSettings.model_validate_json(sys.stdin.buffer.read())
    os.umask(0o077)  # the database holds the model and the public keys
    asyncio.run(_serve(settings))


if __name__ == "__main__":
    main()
