"""The model a site last had, kept on disk so that only what has changed has to travel.

Nothing is used because a file says so: every group is compared with the hash that the coordinator
asks for. A file that is missing, damaged or of another model costs one full transfer.
"""

from pathlib import Path

import safetensors
from flwr.app import RecordDict

from iedn.errors import ProtocolError, RefusedError
from iedn.files import atomic_write_tensors
from iedn.parameters import Array, by_group, flatten, state_hash
from iedn.protocol.encoding import apply_delta, decode, encoding_of
from iedn.protocol.messages import MISSING_BASE, ModelRequest
from iedn.protocol.records import Tensors, parse_encoded, parse_groups

FILE = "held-model.safetensors"

Held = dict[str, dict[str, Array]]


def received_groups(folder: Path, request: ModelRequest, record: RecordDict) -> Held:
    """The groups a request is about: from its record, from what the site holds, or from both.

    What the site holds afterwards is the model of this request.

    Raises:
        ProtocolError: ``missing-base``: the site does not hold what the record relies on; the
            coordinator then sends everything.
        RefusedError: groups that were not announced, or that do not hash to what was announced.
    """
    full, deltas = parse_groups(record), parse_encoded(record)
    wanted = request.group_hashes
    if not wanted and not deltas:
        return full
    if extra := sorted((set(full) | set(deltas)) - set(wanted)):
        raise RefusedError("wrong-group", f"groups that were not announced: {extra}")
    known, held = _read(folder, request.run)
    groups = {g: _group(full.get(g), deltas.get(g), held.get(g)) for g in wanted}
    for group, digest in wanted.items():
        if state_hash(groups[group]) != digest:
            _refuse(group, is_full=group in full)
    if known != request.base_hash or set(held) != set(groups):
        metadata = {"run": request.run, "model_hash": request.base_hash}
        atomic_write_tensors(folder / FILE, flatten(groups), metadata)
    return groups


def held_hash(folder: Path, run: str) -> str | None:
    """Hash of the run's model that the site keeps; None if it keeps none."""
    try:
        with safetensors.safe_open(folder / FILE, framework="np") as stream:
            metadata = stream.metadata() or {}
    except (OSError, safetensors.SafetensorError):
        return None
    return metadata.get("model_hash") if metadata.get("run") == run else None


def _group(
    full: dict[str, Array] | None, delta: bytes | None, held: dict[str, Array] | None
) -> dict[str, Array]:
    if full is not None:
        return full
    if held is None:
        raise ProtocolError(MISSING_BASE, "this site does not hold the model before")
    if delta is None:
        return held
    layout = {name: value.shape for name, value in held.items()}
    return apply_delta(held, decode(delta, layout, encoding_of(delta)))


def _refuse(group: str, *, is_full: bool) -> None:
    if is_full:
        raise RefusedError("wrong-base", f"{group} is not the group that was announced")
    raise ProtocolError(MISSING_BASE, f"{group} does not come to what was announced")


def _read(folder: Path, run: str) -> tuple[str | None, Held]:
    try:
        with safetensors.safe_open(folder / FILE, framework="np") as stream:
            metadata = stream.metadata() or {}
            if metadata.get("run") != run:
                return None, {}
            tensors: Tensors = {n: stream.get_tensor(n) for n in stream.keys()}  # noqa: SIM118
            return metadata.get("model_hash"), by_group(tensors)
    except (OSError, ValueError, ProtocolError, safetensors.SafetensorError):
        return None, {}
