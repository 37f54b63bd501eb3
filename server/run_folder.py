"""The run folder: what the coordinator keeps, and how it survives being killed.

``round-0007.safetensors``  the global model after round 7
``state-0007.safetensors``  server-optimiser moments after round 7 (only where there are any)
``best.safetensors``        the model chosen on validation
``history.jsonl``           one line an event; the ``commit`` line is what makes a round count
``federation.lock.json``    versions, hashes, seeds and configuration of the run

A round is committed by appending its line after its files are on disk. A process killed before
leaves files nobody refers to, which the repeated round overwrites; killed after, nothing is lost.
"""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.numpy

from iedn.checkpoint import load_checkpoint, save_checkpoint
from iedn.errors import CheckpointError, ConfigError
from iedn.files import (
    append_line,
    atomic_copy,
    atomic_write_bytes,
    atomic_write_tensors,
    cut_torn_line,
    only_process,
)
from iedn.parameters import by_group, flatten, state_hash

from .aggregation import Float32Groups
from .config import FederationConfig
from .history import Event, History
from .optimizers import Moments

HISTORY, LOCK, BEST = "history.jsonl", "federation.lock.json", "best.safetensors"


class RunFolder:
    """One run's files; hold it with ``exclusive`` while the run goes on.

    Args:
        path: the folder; made if missing.
        config: the run's configuration.

    Raises:
        ConfigError: the folder belongs to a run with another configuration.
    """

    def __init__(self, path: Path, config: FederationConfig) -> None:
        self.path = Path(path)
        self._config = config
        self._history = History(self.path / HISTORY)
        self.path.mkdir(parents=True, exist_ok=True)
        self._check_or_write_lock()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep a second coordinator out of the folder, and mend what a crash left.

        Raises:
            ConfigError: another process holds it.
        """
        with only_process(self.path / ".exclusive") as is_ours:
            if not is_ours:
                raise ConfigError("another process is running this run", where=str(self.path))
            cut_torn_line(self.path / HISTORY)
            yield

    def events(self) -> list[Event]:
        """All complete lines of the history; one that is being written is not looked at.

        Raises:
            CheckpointError: a line is damaged.
        """
        return self._history.events()

    def append(self, event: Event) -> None:
        """Append one event with its time, durably."""
        append_line(self._history.path, json.dumps({"time": _now(), **event}, sort_keys=True))

    def last_commit(self) -> Event | None:
        """The commit line of the last committed round."""
        commits = [e for e in self.events() if e["event"] == "commit"]
        return commits[-1] if commits else None

    def commit(
        self,
        round_number: int,
        model: Float32Groups,
        moments: Moments,
        facts: Event,
        *,
        model_hash: str | None = None,
    ) -> Event:
        """Write model and optimiser state, then the line that makes the round count.

        Args:
            round_number: 0 for the initial model.
            model: all of it.
            moments: of the server optimiser.
            facts: more fields of the line.
            model_hash: the model's hash where it is known.
        """
        model_hash = self._save_model(round_number, model, model_hash)
        event: Event = {
            "event": "commit",
            "round": round_number,
            "model_hash": model_hash,
            "state_hash": self._save_moments(round_number, moments),
            **facts,
        }
        self.append(event)
        self._prune(round_number)
        return event

    def load(self, commit: Event) -> tuple[Float32Groups, Moments]:
        """Model and optimiser state of a commit.

        Raises:
            CheckpointError: a file is missing, damaged or not the one that was committed.
        """
        path = self._round_path(commit["round"])
        checkpoint = load_checkpoint(path)
        if checkpoint.model_hash != commit["model_hash"]:
            raise CheckpointError("is not the model that was committed", where=str(path))
        return by_group(checkpoint.tensors), self._load_moments(commit)

    def save_best(self, commit: Event) -> None:
        """Make the committed model the best one: a copy of its file, which is checked when read."""
        atomic_copy(self._round_path(commit["round"]), self.path / BEST)

    def load_best(self) -> tuple[Float32Groups, str, int]:
        """The best model, its hash and its round."""
        checkpoint = load_checkpoint(self.path / BEST)
        return (
            by_group(checkpoint.tensors),
            checkpoint.model_hash,
            int(checkpoint.metadata["round"]),
        )

    def _save_model(self, round_number: int, model: Float32Groups, known: str | None) -> str:
        preset = self._config.effective_preset
        metadata = {
            "run": self._config.run,
            "round": str(round_number),
            "grid": preset.grid.model_dump_json(),
            "trained_on": "phantom (simulation)" if self._config.simulation else "patients",
        }
        return save_checkpoint(
            self._round_path(round_number),
            flatten(model),
            preset.network,
            metadata=metadata,
            model_hash=known,
        )

    def _save_moments(self, round_number: int, moments: Moments) -> str | None:
        if not moments:
            return None
        atomic_write_tensors(self._state_path(round_number), moments)
        return state_hash(moments)

    def _load_moments(self, commit: Event) -> Moments:
        if commit["state_hash"] is None:
            return {}
        path = self._state_path(commit["round"])
        try:
            moments = safetensors.numpy.load(path.read_bytes())
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError("cannot be read", where=str(path)) from error
        if state_hash(moments) != commit["state_hash"]:
            raise CheckpointError("is not the state that was committed", where=str(path))
        return moments

    def _prune(self, newest: int) -> None:
        for path in self.path.glob("*-[0-9][0-9][0-9][0-9].safetensors"):
            if int(path.stem[-4:]) <= newest - self._config.rounds.keep:
                path.unlink()

    def _round_path(self, round_number: int) -> Path:
        return self.path / f"round-{round_number:04d}.safetensors"

    def _state_path(self, round_number: int) -> Path:
        return self.path / f"state-{round_number:04d}.safetensors"

    def _check_or_write_lock(self) -> None:
        path = self.path / LOCK
        if not path.exists():
            content = json.dumps(lock_of(self._config), indent=2, sort_keys=True)
            atomic_write_bytes(path, content.encode() + b"\n")
            return
        try:
            locked = json.loads(path.read_bytes())["configuration"]
        except (ValueError, KeyError) as error:
            raise ConfigError("is damaged", where=str(path)) from error
        difference = _first_difference(_comparable(locked), _comparable(_dump(self._config)))
        if difference:
            problem = f"the folder holds a run that differs in {difference}"
            allowed = "the same configuration, or another folder; rounds.count may change"
            raise ConfigError(problem, where=str(self.path), allowed=allowed)


def lock_of(config: FederationConfig) -> dict[str, Any]:
    """What has to be the same for bit-identical models, and the whole configuration."""
    packages = ("iedn", "flwr", "torch", "numpy", "scipy", "SimpleITK", "nibabel", "zstandard")
    return {
        "configuration": _dump(config),
        "versions": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "seed": config.seed,
        "simulation": config.simulation,
        "created": _now(),
    }


def _dump(config: FederationConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _comparable(dump: dict[str, Any]) -> dict[str, Any]:
    """The configuration without what a continued run may change."""
    changeable = ("count", "deadline_s", "join_timeout_s", "offline_grace_s", "keep")
    rounds = {k: v for k, v in dump.get("rounds", {}).items() if k not in changeable}
    return {**dump, "rounds": rounds, "listen": None}


def _first_difference(a: Any, b: Any, place: str = "") -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            inner = _first_difference(a.get(key), b.get(key), f"{place}.{key}".strip("."))
            if inner:
                return inner
        return ""
    return "" if a == b else f"{place} ({a!r} there, {b!r} here)"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
