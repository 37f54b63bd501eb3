"""The site's last update, kept on disk so that a repeated request gets the same answer.

A coordinator that was killed after a site had answered asks again. The same bytes go out again:
nothing is trained twice and no privacy is spent twice.

With a quantised update the same file holds what quantising has left over, after the round and
before it: a round that is trained again, since the coordinator asks for it in other words, starts
from what was left before. Both are written with the reply or not at all.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from iedn.files import atomic_write_tensors
from iedn.parameters import by_group
from iedn.protocol.messages import TrainReply, TrainRequest
from iedn.protocol.records import Sendable

_log = logging.getLogger(__name__)

FILE = "kept-reply.safetensors"

Residual = Mapping[str, NDArray[np.float32]]
"""What quantising has left over, by tensor name."""

_ENCODED, _BEFORE, _AFTER = "encoded/", "before/", "after/"


@dataclass(frozen=True)
class Residuals:
    """What quantising has left over, before a round and after it."""

    before: Residual = field(default_factory=dict)
    after: Residual = field(default_factory=dict)


def keep_reply(
    folder: Path,
    request: TrainRequest,
    reply: TrainReply,
    sent: Sendable,
    residuals: Residuals | None = None,
) -> None:
    """Replace the kept reply by this one, atomically."""
    residuals = residuals or Residuals()
    tensors: dict[str, NDArray[np.generic]] = {}
    for group, content in sent.items():
        if isinstance(content, bytes):
            tensors[_ENCODED + group] = np.frombuffer(content, np.uint8)
        else:
            tensors.update(content)
    tensors.update({_BEFORE + name: value for name, value in residuals.before.items()})
    tensors.update({_AFTER + name: value for name, value in residuals.after.items()})
    metadata = {"reply": reply.model_dump_json(), "request": _digest(request)}
    atomic_write_tensors(folder / FILE, tensors, metadata)


def kept_reply(folder: Path, request: TrainRequest) -> tuple[TrainReply, Sendable] | None:
    """The kept reply if it answers this very request, else None.

    The request's digest covers run, round, base model, every training setting and, where the
    update is masked, all sites and keys of the round.
    A damaged file counts as none: the round is then trained again, with the same result.
    """
    found = _read(folder)
    if found is None or found.request != _digest(request):
        return None
    plain = {name: value for name, value in found.tensors.items() if "/" not in name}
    encoded = {group: x.tobytes() for group, x in _under(_ENCODED, found.tensors).items()}
    return found.reply, {**by_group(plain), **encoded}


def residual_before(folder: Path, request: TrainRequest, *, is_noised: bool) -> Residual:
    """What quantising had left over when the round of this request began; empty at first.

    Args:
        folder: the site's.
        request: of the round.
        is_noised: whether the round trains with noise. What updates without noise have left over
            must not leave with one that promises it.
    """
    found = _read(folder)
    if found is None or found.reply.run != request.run:
        return {}
    if is_noised and found.reply.ledger_count is None:
        _log.warning("noise from round %d on: what quantising had left is dropped", request.round)
        return {}
    if found.reply.round == request.round:  # it is trained again: roll back
        return _under(_BEFORE, found.tensors)
    if found.reply.round < request.round:
        return _under(_AFTER, found.tensors)
    _log.warning("round %d again: what quantising had left over is dropped", request.round)
    return {}


@dataclass(frozen=True)
class _Kept:
    request: str
    reply: TrainReply
    tensors: dict[str, NDArray[Any]]


def _read(folder: Path) -> _Kept | None:
    try:
        with safetensors.safe_open(folder / FILE, framework="np") as stream:
            metadata = stream.metadata()
            reply = TrainReply.model_validate_json(metadata["reply"])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            return _Kept(metadata["request"], reply, tensors)
    except (OSError, ValueError, KeyError, safetensors.SafetensorError):
        return None


def _under(prefix: str, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _digest(request: TrainRequest) -> str:
    return hashlib.sha256(request.model_dump_json().encode()).hexdigest()
