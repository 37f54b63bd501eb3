"""The coordinator's hold on its SuperLink: started, watched, started again, asked.

Supervised by state, not by pid: a SuperLink that does not answer is as dead as one that is gone.
Its database is on disk and sites retry, so a restart costs seconds and loses nothing.
"""

import logging
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from iedn.bundle import bundle_bytes, bundle_hash
from iedn.errors import UnreachableError
from iedn.process import flower_environment, start_module, stop_child

from .config import ListenConfig
from .superlink import PRIVATE_HEADER, LinkSettings

_log = logging.getLogger(__name__)

STATE, DATABASE, LINK_LOG = "superlink", "superlink.db", "superlink.log"

_STARTUP_S = 120.0
_LOOK_S = 1.0
_PATIENCE_S = 30.0
_MOST_FAILED_STARTS = 5


class PrivateInterceptor:
    """Shows the private listener's secret with every call."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Add the header and pass the call on."""
        context.request.headers[PRIVATE_HEADER] = self._secret
        return call_next(context)


class Control:
    """What a coordinator asks of its own SuperLink.

    Args:
        address: ``host:port`` of the private listener.
        secret: of this start.
    """

    def __init__(self, address: str, secret: str) -> None:
        self.address, self.secret = address, secret
        self._client = ControlHttpClient.from_server_address(
            address,
            insecure=True,
            root_certificates=None,
            interceptors=[PrivateInterceptor(secret)],
        )

    def nodes(self) -> list[NodeInfo]:
        """Registered nodes."""
        return list(self._client.ListNodes(ListNodesRequest()).nodes_info)

    def register(self, site: str, public_key: bytes) -> None:
        """Let the holder of a key (PEM) in as a site."""
        self._client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=site))

    def unregister(self, node_id: int) -> None:
        """Refuse a node from now on."""
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def start_run(self) -> int:
        """Start a run with the installed version's manifest, and end what earlier runs left.

        Returns:
            Flower's number of the run.
        """
        for run_id, run in self._client.ListRuns(ListRunsRequest()).run_dict.items():
            if run.status.status != "finished":
                self._client.StopRun(StopRunRequest(run_id=run_id))
        fab = Fab(hash_str=bundle_hash(), content=bundle_bytes())
        return int(self._client.StartRun(StartRunRequest(fab=fab)).run_id)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class Link:
    """A running SuperLink; ``superlink`` makes one.

    Args:
        folder: where its database and its log are.
        settings: of its process; the same for every restart.
    """

    def __init__(self, folder: Path, settings: LinkSettings) -> None:
        self._folder, self._settings = folder, settings
        self._child: subprocess.Popen[bytes] | None = None
        self._ending = threading.Event()
        self._watch = threading.Thread(target=self._supervise, name="link-watch", daemon=True)
        self.control = Control(f"127.0.0.1:{settings.private_port}", settings.secret)

    def open(self) -> None:
        """Start the process, wait until it answers, and watch it from then on.

        Raises:
            UnreachableError: it does not come up; its log says why.
        """
        self._start()
        self._watch.start()

    def close(self) -> None:
        """End the process."""
        self._ending.set()
        if self._watch.is_alive():
            self._watch.join()
        self.control.close()
        if self._child is not None:
            stop_child(self._child)

    def is_alive(self) -> bool:
        """Whether the SuperLink answers."""
        try:
            answer = httpx.get(
                f"http://{self.control.address}/health", timeout=5.0, trust_env=False
            )
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK

    def _start(self) -> None:
        for _ in range(_MOST_FAILED_STARTS):
            if self._ending.is_set() or self._try_start():
                return
            time.sleep(_LOOK_S)  # a port may still be held by a process that is ending
        text = f"the SuperLink does not come up; {self._folder / LINK_LOG} says why"
        raise UnreachableError(text)

    def _try_start(self) -> bool:
        environment = flower_environment(self._folder / "home")
        settings = self._settings.model_dump_json().encode()
        child = start_module(
            "server.superlink", settings, environment=environment, log=self._folder / LINK_LOG
        )
        self._child = child
        deadline = time.monotonic() + _STARTUP_S
        while time.monotonic() < deadline and child.poll() is None:
            if self.is_alive():
                return True
            if self._ending.wait(0.1):
                break
        stop_child(child)
        return False

    def _supervise(self) -> None:
        last_seen = time.monotonic()
        while not self._ending.wait(_LOOK_S):
            child = self._child
            if child is not None and child.poll() is None and self.is_alive():
                last_seen = time.monotonic()
                continue
            gone = child is None or child.poll() is not None
            if gone or time.monotonic() - last_seen > _PATIENCE_S:
                _log.warning("the SuperLink is %s; starting it again", "gone" if gone else "stuck")
                last_seen = self._restart(child)

    def _restart(self, child: subprocess.Popen[bytes] | None) -> float:
        if child is not None:
            stop_child(child)
        try:
            self._start()
        except UnreachableError as error:
            _log.error("%s; trying again", error)
        return time.monotonic()


@contextmanager
def superlink(folder: Path, listen: ListenConfig) -> Iterator[Link]:
    """A SuperLink for the coordinator's folder, as long as the block lasts.

    Args:
        folder: the coordinator's folder; TLS files are relative to it.
        listen: where to listen.

    Raises:
        UnreachableError: it does not come up.
    """
    state = folder / STATE
    state.mkdir(mode=0o700, exist_ok=True)
    settings = LinkSettings(
        database=(state / DATABASE).absolute(),
        host=listen.host,
        port=listen.port,
        private_port=listen.private_port,
        health_port=listen.health_port,
        certificate=(folder / listen.certificate).absolute(),
        key=(folder / listen.key).absolute(),
        secret=secrets.token_hex(32),
    )
    link = Link(state, settings)
    try:
        link.open()
        yield link
    finally:
        link.close()
