"""Writes down what this process hands to TLS, and whom it connects to.

Python imports a module of this name at its start if it is on the path. ``IEDN_TEST_TAP`` names a
folder: ``PID.sent`` holds the bytes before they are encrypted, ``PID.peers`` a line a connection.
"""

import os
import socket
import ssl
from pathlib import Path
from typing import Any


def _note(suffix: str, content: bytes) -> None:
    path = Path(os.environ["IEDN_TEST_TAP"]) / f"{os.getpid()}.{suffix}"
    with path.open("ab") as stream:
        stream.write(content)


def _tapped(write: Any) -> Any:
    def tapped(self: Any, content: Any, *more: Any) -> Any:
        sent = write(self, content, *more)
        _note("sent", bytes(memoryview(content).cast("B")[:sent]))
        return sent

    return tapped


def _noted(connect: Any) -> Any:
    def noted(self: Any, address: Any) -> Any:
        _note("peers", f"{address!r}\n".encode())
        return connect(self, address)

    return noted


if "IEDN_TEST_TAP" in os.environ:
    for kind, name in (
        (ssl.SSLSocket, "send"),
        (ssl.SSLSocket, "write"),
        (ssl.SSLObject, "write"),
    ):
        setattr(kind, name, _tapped(getattr(kind, name)))
    for name in ("connect", "connect_ex"):
        setattr(socket.socket, name, _noted(getattr(socket.socket, name)))
