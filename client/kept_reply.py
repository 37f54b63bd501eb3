"""The site's last update, kept on disk so that a repeated request gets the same answer.

A coordinator that was killed after a site had answered asks again. The same bytes go out again:
nothing is trained twice and no privacy is spent twice.
"""

import hashlib
from pathlib import Path

import safetensors

from iedn.files import atomic_write_tensors
from iedn.masking import RingGroups
from iedn.parameters import by_group, flatten
from iedn.protocol.messages import TrainReply, TrainRequest
from sites.egress import Deltas

Tensors = Deltas | RingGroups
"""An update's tensors, as they are or masked."""

FILE = "kept-reply.safetensors"


def keep_reply(folder: Path, request: TrainRequest, reply: TrainReply, tensors: Tensors) -> None:
    """Replace the kept reply by this one, atomically."""
    metadata = {"reply": reply.model_dump_json(), "request": _digest(request)}
    atomic_write_tensors(folder / FILE, flatten(tensors), metadata)


def kept_reply(folder: Path, request: TrainRequest) -> tuple[TrainReply, Tensors] | None:
    """The kept reply if it answers this very request, else None.

    The request's digest covers run, round, base model, every training setting and, where the
    update is masked, all sites and keys of the round.
    A damaged file counts as none: the round is then trained again, with the same result.
    """
    path = folder / FILE
    try:
        with safetensors.safe_open(path, framework="np") as stream:
            metadata = stream.metadata()
            if metadata["request"] != _digest(request):
                return None
            reply = TrainReply.model_validate_json(metadata["reply"])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (OSError, ValueError, KeyError, safetensors.SafetensorError):
        return None
    return reply, by_group(tensors)


def _digest(request: TrainRequest) -> str:
    return hashlib.sha256(request.model_dump_json().encode()).hexdigest()
