"""Admitted sites: public keys on the coordinator's disk, kept in step with SuperLink's register.

``admitted/NAME.pub`` holds one OpenSSH public key. Whoever may write there decides who takes
part; the running coordinator follows the folder, so nobody has to stop a run to let a site in.
"""

import logging
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)
from flwr.proto.node_pb2 import NodeInfo

_log = logging.getLogger(__name__)

ADMITTED = "admitted"

_SHUT_OUT = "unregistered"


class Register(Protocol):
    """The part of SuperLink that knows nodes."""

    def nodes(self) -> list[NodeInfo]:
        """Registered nodes."""
        ...

    def register(self, site: str, public_key: bytes) -> None:
        """Let a key in."""
        ...

    def unregister(self, node_id: int) -> None:
        """Shut a node out."""
        ...


def admitted_keys(folder: Path) -> dict[str, bytes]:
    """Public key (PEM) by site name, from ``folder/admitted``.

    A file that is not a public key is left out and logged.
    """
    keys: dict[str, bytes] = {}
    for path in sorted((folder / ADMITTED).glob("*.pub")):
        try:
            key = load_ssh_public_key(path.read_bytes())
        except (ValueError, OSError) as error:
            _log.warning("%s: not a public key (%s)", path, error)
            continue
        keys[path.stem] = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return keys


def follow(folder: Path, register: Register) -> None:
    """Register what is admitted and not registered; shut out what is registered and not admitted.

    A key that was shut out once stays so: SuperLink never takes it again, and a site that comes
    back makes a new one.
    """
    admitted = {(key, site) for site, key in admitted_keys(folder).items()}
    nodes = register.nodes()
    present = {(bytes(n.public_key), n.name): n for n in nodes if n.status != _SHUT_OUT}
    spent = {bytes(n.public_key) for n in nodes if n.status == _SHUT_OUT}
    for identity, node in sorted(present.items()):
        if identity not in admitted:
            register.unregister(node.node_id)
            spent.add(identity[0])
            _log.info("%s: shut out", node.name)
    for key, site in sorted(admitted - set(present)):
        if key in spent:
            _log.warning("%s: its key was revoked before; ask the site for a new one", site)
            continue
        register.register(site, key)
        _log.info("%s: let in", site)
