"""Model files: safetensors with the network's configuration and the model's hash inside.

No pickle and no PyTorch: the coordinator writes and reads them as NumPy arrays. A file is written
under a temporary name and renamed, so that a killed process leaves the old file or the new one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from .config import NetworkConfig
from .errors import CheckpointError
from .files import atomic_write_tensors
from .parameters import Array, state_hash

SCHEMA_VERSION = "1"
OWN_KEYS = ("schema_version", "network", "model_hash")


@dataclass(frozen=True)
class Checkpoint:
    """What a model file holds.

    Attributes:
        tensors: parameters by name.
        config: of the network they belong to.
        metadata: what the writer added, e.g. the round.
        model_hash: SHA-256 over the tensors, checked against the file's.
    """

    tensors: dict[str, Array]
    config: NetworkConfig
    metadata: dict[str, str]
    model_hash: str


def save_checkpoint(
    path: Path | str,
    tensors: Mapping[str, Array],
    config: NetworkConfig,
    *,
    metadata: Mapping[str, str] | None = None,
    model_hash: str | None = None,
) -> str:
    """Write a model file, atomically and durably.

    Args:
        path: ends in ``.safetensors`` by convention.
        tensors: parameters by name.
        config: of the network.
        metadata: further strings to keep in the file.
        model_hash: hash of ``tensors`` if it is known; reading checks it.

    Returns:
        The model's hash.

    Raises:
        ValueError: ``metadata`` uses one of the keys this module writes itself.
    """
    extra = dict(metadata or {})
    if clash := [key for key in OWN_KEYS if key in extra]:
        raise ValueError(f"metadata must not use {clash}")
    model_hash = model_hash or state_hash(tensors)
    header = {
        "schema_version": SCHEMA_VERSION,
        "network": config.model_dump_json(),
        "model_hash": model_hash,
        **extra,
    }
    atomic_write_tensors(Path(path), tensors, header)
    return model_hash


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read a model file and check it.

    Raises:
        CheckpointError: the file is missing, damaged, of another schema, or its tensors are not
            those that were written.
    """
    header, tensors = _read(Path(path))
    version = header.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"schema version {version!r}", where=str(path), allowed=f"{SCHEMA_VERSION!r}"
        )
    written, found = header.pop("model_hash", None), state_hash(tensors)
    if written != found:
        raise CheckpointError(
            f"the tensors hash to {found}, the file says {written}; it was damaged or edited",
            where=str(path),
        )
    config = _network(header.pop("network", ""), path)
    return Checkpoint(tensors=tensors, config=config, metadata=header, model_hash=found)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Array]]:
    if not path.is_file():
        raise CheckpointError("no such model file", where=str(path))
    try:
        with safe_open(path, framework="numpy") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            return dict(stream.metadata() or {}), tensors
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot be read ({error})", where=str(path)) from error


def _network(text: str, path: Path | str) -> NetworkConfig:
    try:
        return NetworkConfig.model_validate(json.loads(text))
    except (ValidationError, json.JSONDecodeError) as error:
        raise CheckpointError(f"network configuration: {error}", where=str(path)) from error
