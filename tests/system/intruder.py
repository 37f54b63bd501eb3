"""What an outsider, or a site that has turned, can send to a running federation."""

import http.client
import socket
import sqlite3
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.identity import read_private_key
from client.node import NodeSettings, new_secret
from iedn.process import flower_environment, start_module, stop_child
from server.link import DATABASE, STATE
from tests.deployment import Deployment, free_port

UINT64 = 2**64 - 1


def knock(
    deployed: Deployment,
    path: str,
    *,
    port: int | None = None,
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> int:
    """Status of one request whose path goes out exactly as it is written here.

    To the public listener over TLS with nothing but the authority's certificate, or to another
    loopback port in the clear.
    """
    if port is None:
        trust = ssl.create_default_context(cafile=str(deployed.run / "tls" / "ca.crt"))
        made: http.client.HTTPConnection = http.client.HTTPSConnection(
            "localhost", deployed.port, context=trust, timeout=120
        )
    else:
        made = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    sent = {"Host": "localhost", "Content-Type": PROTOBUF_MEDIA_TYPE, "Content-Length": "0"} | (
        headers or {}
    )
    with closing(made) as connection:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            connection.putheader(name, value)
        connection.endheaders()
        with closing(connection.getresponse()) as response:
            response.read()
            return response.status


@contextmanager
def fleet(deployed: Deployment, key: EllipticCurvePrivateKey) -> Iterator[FleetHttpClient]:
    """Flower's own client of the public listener, signing with a key."""
    authority = (deployed.run / "tls" / "ca.crt").read_bytes()
    signing = NodeAuthHttpInterceptor(key, key.public_key())
    with FleetHttpClient.from_server_address(
        f"localhost:{deployed.port}", False, authority, interceptors=[signing]
    ) as client:
        yield client


def status_of(call: Callable[[], object]) -> int:
    """HTTP status that a call of Flower's client meets."""
    try:
        call()
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    return 200


def site_key(deployed: Deployment, site: str) -> EllipticCurvePrivateKey:
    """A site's private key."""
    return read_private_key(deployed.kit(site) / "tls" / "site.key")


def nodes(deployed: Deployment) -> dict[str, int]:
    """Number of each node in SuperLink's register that is not shut out, by name."""
    rows = _rows(deployed, "SELECT name, node_id FROM node WHERE status != 'unregistered'")
    return {str(name): int(number) & UINT64 for name, number in rows}


def online(deployed: Deployment) -> set[str]:
    """Names of nodes that have been activated."""
    query = "SELECT name, status FROM node"
    return {str(name) for name, status in _rows(deployed, query) if status == "online"}


def runs(deployed: Deployment) -> dict[int, str]:
    """Bundle of each run that SuperLink knows."""
    rows = _rows(deployed, "SELECT run_id, fab_hash FROM run")
    return {int(number) & UINT64: str(digest) for number, digest in rows}


def _rows(deployed: Deployment, query: str) -> list[tuple[object, ...]]:
    path = deployed.run / STATE / DATABASE
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60)) as database:
        return database.execute(query).fetchall()


class LoneNode:
    """A site's node process without a site: it tries to reach a coordinator.

    Args:
        folder: for its log.
        address: of the coordinator.
        ca: authority it trusts.
        key: file of its private key.
    """

    def __init__(self, folder: Path, *, address: str, ca: Path, key: Path) -> None:
        folder.mkdir(parents=True)
        self.log = folder / "node.log"
        settings = NodeSettings(
            address=address,
            ca=ca,
            key=key,
            port=free_port(),
            secret=new_secret(),
            heartbeat_s=10,
            heard=folder / "heard",
        )
        self.process: subprocess.Popen[bytes] = start_module(
            "client.node",
            settings.model_dump_json().encode(),
            environment=flower_environment(folder / "home"),
            log=self.log,
        )

    def wait(self, timeout_s: float) -> str:
        """Its log, once it has given up."""
        self.process.wait(timeout=timeout_s)
        return self.log.read_text(encoding="utf-8")

    def close(self) -> None:
        """End it."""
        stop_child(self.process)


class FalseCoordinator:
    """Listens with a certificate of its own and keeps what callers say after the handshake."""

    def __init__(self, host: str, certificate: Path, key: Path) -> None:
        self.alerts: list[str] = []
        self.heard = b""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._socket = socket.create_server((host, 0))
        self.address = f"{host}:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no longer."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(60)
                self._listen(connection)

    def _listen(self, connection: socket.socket) -> None:
        try:
            with self._context.wrap_socket(connection, server_side=True) as secured:
                self.heard += secured.recv(65536)
        except ssl.SSLError as error:
            self.alerts.append(str(error.reason))
        except OSError as error:
            self.alerts.append(type(error).__name__)
