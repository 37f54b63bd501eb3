"""What training has changed, on its way out: as it is, or quantised; and what is logged of it."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from iedn.parameters import state_hash
from iedn.protocol.encoding import Encoded
from iedn.protocol.records import Sendable, Tensors

Deltas = Mapping[str, Tensors]
Changes = Mapping[str, Tensors | Encoded]
"""The change of each group: as it is, or quantised for its way."""


def decoded(changes: Changes) -> Deltas:
    """The changes as the coordinator will read them."""
    return {g: c.decoded if isinstance(c, Encoded) else c for g, c in changes.items()}


def leaving(changes: Changes) -> Sendable:
    """The changes as they travel."""
    return {g: c.payload if isinstance(c, Encoded) else c for g, c in changes.items()}


def facts_of(sent: Sendable) -> dict[str, object]:
    """Hash and bytes of what really leaves: tensors, or their quantised payloads."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for group, content in sent.items():
        if isinstance(content, bytes):
            arrays[group] = np.frombuffer(content, np.uint8)
        else:
            arrays.update(content)
    kind = "encoded" if any(isinstance(c, bytes) for c in sent.values()) else "tensors"
    return {kind: state_hash(arrays), "bytes": sum(a.nbytes for a in arrays.values())}
