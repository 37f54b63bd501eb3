"""A released model file at a site: its network, its grid, its hash."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from iedn.checkpoint import load_checkpoint
from iedn.config import GridConfig, NetworkConfig
from iedn.errors import CheckpointError
from iedn.model import Network
from iedn.parameters import by_group

from .training import network_from


@dataclass(frozen=True)
class ModelFile:
    """What a model file gives a site.

    Attributes:
        network: the network with its weights.
        grid: the grid it was trained on.
        config: the network's configuration.
        model_hash: SHA-256 of its tensors.
        round_number: the round it was committed in.
        metadata: what else the writer added.
    """

    network: Network
    grid: GridConfig
    config: NetworkConfig
    model_hash: str
    round_number: int
    metadata: dict[str, str]


def load_model_file(path: Path) -> ModelFile:
    """Read a model file that a run has written.

    Raises:
        CheckpointError: it is missing, damaged, or does not say which grid it is for.
    """
    checkpoint = load_checkpoint(path)
    try:
        grid = GridConfig.model_validate_json(checkpoint.metadata["grid"])
        number = int(checkpoint.metadata["round"])
    except (KeyError, ValueError, ValidationError) as error:
        raise CheckpointError("does not say its grid and round", where=str(path)) from error
    return ModelFile(
        network_from(by_group(checkpoint.tensors), checkpoint.config),
        grid,
        checkpoint.config,
        checkpoint.model_hash,
        number,
        checkpoint.metadata,
    )
