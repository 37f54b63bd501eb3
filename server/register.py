"""SuperLink's register of nodes, kept in step with the folder of admitted keys.

Whoever may write to ``admitted/`` decides who takes part; the running coordinator follows it, so
nobody has to stop a run to let a site in or to shut one out.
"""

import logging
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.node_pb2 import NodeInfo

from .admission import admitted_keys

_log = logging.getLogger(__name__)

_SHUT_OUT = "unregistered"


class Register(Protocol):
    """The part of SuperLink that knows nodes."""

    def nodes(self) -> list[NodeInfo]:
        """Registered nodes."""
        ...

    def register(self, site: str, public_key: bytes) -> None:
        """Let a key (PEM) in."""
        ...

    def unregister(self, node_id: int) -> None:
        """Shut a node out."""
        ...


def follow(folder: Path, register: Register) -> None:
    """Register what is admitted and not registered; shut out what is registered and not admitted.

    A key that was shut out once stays so: SuperLink never takes it again, and a site that comes
    back makes a new one.

    Raises:
        IdentityError: a file of ``admitted/`` is no public key; nothing was changed.
    """
    admitted = {
        (key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), site)
        for site, key in admitted_keys(folder).items()
    }
    nodes = register.nodes()
    present = {(bytes(n.public_key), n.name): n for n in nodes if n.status != _SHUT_OUT}
    spent = {bytes(n.public_key) for n in nodes if n.status == _SHUT_OUT}
    for identity, node in sorted(present.items(), key=lambda item: item[0]):
        if identity not in admitted:
            register.unregister(node.node_id)
            spent.add(identity[0])
            _log.info("%s: shut out", node.name)
    for key, site in sorted(admitted - set(present)):
        if key in spent:
            _log.debug("%s: its key was revoked before; it needs a new one", site)
            continue
        register.register(site, key)
        _log.info("%s: let in", site)
