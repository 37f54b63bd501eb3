"""The paper's Table 2 on a phantom: one IEDN, and one encoder-decoder a combination of inputs.

All models make the same number of steps on the pooled training scans of a scenario. The IEDN
learns from every scan; an encoder-decoder only from those that have all of its inputs. All are
tested on the same held-out scans. A model and its scores are files of their own, written when
they are complete, so that the same command goes on after any stop.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from client.combinations import Unit, UnitFolder, identity_of, score_combination, scored_scans
from client.model_file import load_model_file
from iedn import progress
from iedn.checkpoint import save_checkpoint
from iedn.config import Architecture, Preset, TrainingConfig
from iedn.errors import CheckpointError, ConfigError
from iedn.evaluation.combination_table import ScanScore
from iedn.evaluation.combinations import STRUCTURAL, Combination, combinations_of, name_of
from iedn.model import Network, build_network
from iedn.parameters import flatten, state_by_group
from iedn.sample import IednSample
from iedn.seeding import derive_seed
from iedn.training import train
from server.config import FederationConfig
from sites.config import SITE_FILE, load_site_config
from sites.dataset import PreparedCohort, ScanDataset, prepare_cohort

from .prepare import prepare_sites
from .scenario import ScenarioConfig
from .table2_page import Facts

CODE_VERSION = "1"
"""Raised when the same settings would give other scores."""
TASK = "table 2"

Key = tuple[Architecture, Combination]
Scores = dict[Key, list[ScanScore]]


@dataclass(frozen=True)
class HeldOut:
    """The scans of one site that are tested on."""

    site: str
    dataset: ScanDataset
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Work:
    """What all models of a table share.

    Attributes:
        preset: grid and network; an encoder-decoder has only its combination's modalities.
        training: ``local_steps`` are all steps of a model.
        seed: of weights and batches.
        train: training scans of all sites.
        held_out: test scans, by site.
        identity: hash of training scans and settings.
        test_identity: hash of the held-out scans.
        folder: gets ``models`` and ``units``.
    """

    preset: Preset
    training: TrainingConfig
    seed: int
    train: tuple[IednSample, ...]
    held_out: tuple[HeldOut, ...]
    identity: str
    test_identity: str
    folder: Path

    @property
    def num_held_out(self) -> int:
        """Scans that each model is tested on."""
        return sum(len(part.numbers) for part in self.held_out)


@dataclass(frozen=True)
class Model:
    """One model of the table and the combinations it is tested with."""

    architecture: Architecture
    tested: tuple[Combination, ...]

    @property
    def name(self) -> str:
        """Of its file, without ending."""
        of = f"--{name_of(self.tested[0])}" if self.architecture == "encoder-decoder" else ""
        return f"{self.architecture}{of}"


@dataclass(frozen=True)
class TableRequest:
    """What a user asks for.

    Attributes:
        preset: as the user named it.
        combinations: ``paper``, ``all``, or some (see ``combinations_of``).
        steps: of every model, in place of the scenario's.
        cohorts: where phantom cohorts are kept.
        workers: models trained at a time, one CPU thread each.
    """

    preset: str
    combinations: str
    steps: int | None
    cohorts: Path
    workers: int


def make_table2(scenario: ScenarioConfig, out: Path, request: TableRequest) -> tuple[Scores, Facts]:
    """Everything from phantoms to scores; what is there already is kept.

    Raises:
        ConfigError: unknown combinations, or the scenario has no scans for them.
    """
    wanted = combinations_of(request.combinations)
    prepare_sites(scenario, out, cohorts=request.cohorts, workers=request.workers, role="train")
    work = gather(out, scenario.federation(), wanted, steps=request.steps)
    scores = run_models(work, wanted, workers=request.workers)
    return scores, _facts(request, work)


def _facts(request: TableRequest, work: Work) -> Facts:
    grid, network = work.preset.grid, work.preset.network
    models = models_of(combinations_of(request.combinations))
    files = {model.name: _path(model, work) for model in models}
    numbers = [len(_scans_for(model, work)) for model in models]
    steps = "" if request.steps is None else f" --steps {request.steps}"
    length = "" if request.steps is None else f"-{request.steps}-steps"
    some = "" if request.combinations == "paper" else f" --combinations {request.combinations}"
    return Facts(
        name=f"table2-{Path(request.preset).stem}{length}",
        command=f"iedn-simulate table2 --preset {Path(request.preset).name}{some}{steps}",
        grid=f"{grid.rows}x{grid.columns} at {grid.spacing_mm:g} mm",
        network=f"{network.base_channels} base channels, depth {network.depth}",
        steps=work.training.local_steps,
        training_scans=(min(numbers), max(numbers)),
        held_out_scans=work.num_held_out,
        seconds={
            name: float(load_model_file(path).metadata["seconds"])
            for name, path in files.items()
            if path.exists()
        },
    )


def reference_rows(combinations: Iterable[Combination]) -> tuple[Combination, ...]:
    """What the IEDN is tested with besides, to see what ASL adds: the same without ASL."""
    return tuple(c for c in (STRUCTURAL,) if c not in set(combinations))


def models_of(combinations: Sequence[Combination]) -> list[Model]:
    """The models of a table: the IEDN first, since it takes longest."""
    every = (*combinations, *reference_rows(combinations))
    return [Model("iedn", every), *(Model("encoder-decoder", (c,)) for c in combinations)]


def gather(
    out: Path,
    config: FederationConfig,
    combinations: Sequence[Combination],
    *,
    steps: int | None = None,
) -> Work:
    """The pooled training scans and the held-out scans of a prepared run folder.

    Args:
        out: see ``simulation.prepare.prepare_sites``.
        config: its federation.
        combinations: to be compared.
        steps: of every model, in place of ``training.local_steps``.

    Raises:
        ConfigError: no held-out scan has all modalities, or a combination has too few scans to
            train on.
    """
    preset, training = config.effective_preset, config.training
    if steps is not None:
        training = training.model_copy(update={"local_steps": steps})
    cohorts = {name: _cohort(out, name, preset) for name in config.sites if _trains(config, name)}
    scans = tuple(c.train[i] for c in cohorts.values() for i in range(len(c.train)))
    held_out = tuple(part for n, c in cohorts.items() if (part := _held_out(n, c, combinations)))
    if not held_out:
        raise ConfigError(
            "no held-out scan has all modalities of the table", where=f"scenario {config.run}"
        )
    for combination in combinations:
        if not _having(scans, combination):
            raise ConfigError(
                f"no training scan has {name_of(combination)}", where=f"scenario {config.run}"
            )
    learned = sorted(key for c in cohorts.values() for key in c.train.keys)
    tested = sorted(part.dataset.keys[n] for part in held_out for n in part.numbers)
    identity = identity_of(
        CODE_VERSION,
        preset.model_dump_json(),
        training.model_dump_json(),
        str(config.seed),
        *learned,
    )
    return Work(
        preset=preset,
        training=training,
        seed=config.seed,
        train=scans,
        held_out=held_out,
        identity=identity,
        test_identity=identity_of(*tested),
        folder=out,
    )


def run_models(work: Work, combinations: Sequence[Combination], *, workers: int) -> Scores:
    """Train and test every model that is not on disk yet.

    Returns:
        Scores in the table's order: of each network, in the order of ``combinations``.
    """
    torch.set_num_threads(work.training.threads)
    models = models_of(combinations)
    bar = _Bar(models, work)
    with ThreadPoolExecutor(max_workers=workers) as pool:
        futures = [pool.submit(_run_model, model, work, bar) for model in models]
        try:
            found = [future.result() for future in futures]
        except BaseException:
            bar.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return {key: scores for part in found for key, scores in part.items()}


def _run_model(model: Model, work: Work, bar: "_Bar") -> Scores:
    identity = identity_of(work.identity, work.test_identity, model.name)
    units = {c: Unit(model.architecture, c, identity) for c in model.tested}
    folder = UnitFolder(work.folder / "units")
    scores = {c: folder.load(unit) for c, unit in units.items()}
    if any(found is None for found in scores.values()):
        network = _trained(model, work, bar)
    bar.reach(model, work.training.local_steps)
    result: Scores = {}
    for combination, unit in units.items():
        found = scores[combination]
        if found is None:
            started = time.monotonic()
            found = _tested(network, combination, work, model, bar)
            folder.store(unit, found, time.monotonic() - started)
        bar.reach(model, work.training.local_steps + work.num_held_out * (len(result) + 1))
        result[model.architecture, combination] = found
    return result


def _trained(model: Model, work: Work, bar: "_Bar") -> Network:
    """The model from its file, or trained and written to it."""
    path = _path(model, work)
    identity = identity_of(work.identity, model.name)
    if path.exists() and (network := _kept(path, identity)) is not None:
        return network
    config = work.preset.network
    if model.architecture == "encoder-decoder":
        changes = {"architecture": "encoder-decoder", "modalities": model.tested[0]}
        config = config.model_copy(update=changes)
    scans = _scans_for(model, work)
    seed = derive_seed(work.seed, round_number=0, site=model.name, purpose="table2")
    network = build_network(config, seed)
    summary = train(
        network, scans, work.training, seed=seed, progress=lambda step, _: bar.reach(model, step)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "grid": work.preset.grid.model_dump_json(),
        "round": "0",
        "identity": identity,
        "seconds": f"{summary.seconds:.1f}",
    }
    save_checkpoint(path, flatten(state_by_group(network)), config, metadata=metadata)
    return network


def _path(model: Model, work: Work) -> Path:
    return work.folder / "models" / f"{model.name}.safetensors"


def _scans_for(model: Model, work: Work) -> Sequence[IednSample]:
    """What a model learns from."""
    return work.train if model.architecture == "iedn" else _having(work.train, model.tested[0])


def _kept(path: Path, identity: str) -> Network | None:
    """The network of a file; None if it is of other settings or damaged."""
    try:
        file = load_model_file(path)
    except CheckpointError:
        return None
    return file.network if file.metadata.get("identity") == identity else None


def _tested(
    network: Network, combination: Combination, work: Work, model: Model, bar: "_Bar"
) -> list[ScanScore]:
    """Scores on all held-out scans; patients are named with their site."""
    result: list[ScanScore] = []
    for part in work.held_out:
        found = score_combination(network, part.dataset, part.numbers, combination)
        bar.add(model, len(found))
        result += [replace(s, patient_id=f"{part.site}/{s.patient_id}") for s in found]
    return result


class _Bar:
    """Progress of all models together, in steps and tested scans."""

    def __init__(self, models: Sequence[Model], work: Work) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._done: dict[str, int] = {}
        steps = work.training.local_steps
        self._total = sum(steps + len(m.tested) * work.num_held_out for m in models)

    def reach(self, model: Model, done: int) -> None:
        """So much of a model is done."""
        with self._lock:
            self._done[model.name] = done
            self._report()

    def add(self, model: Model, more: int) -> None:
        """So much more of a model is done."""
        with self._lock:
            self._done[model.name] = self._done.get(model.name, 0) + more
            self._report()

    def stop(self) -> None:
        """End the threads that report here, at their next step."""
        self._stopped = True

    def _report(self) -> None:
        if self._stopped:
            raise KeyboardInterrupt
        progress.report(TASK, sum(self._done.values()), self._total)


def _having(scans: Iterable[IednSample], combination: Combination) -> list[IednSample]:
    return [scan for scan in scans if set(combination) <= set(scan.images)]


def _held_out(
    site: str, cohort: PreparedCohort, combinations: Sequence[Combination]
) -> HeldOut | None:
    every = (*combinations, *reference_rows(combinations))
    numbers = scored_scans(cohort.test, every)
    return HeldOut(site, cohort.test, tuple(numbers)) if numbers else None


def _trains(config: FederationConfig, site: str) -> bool:
    return config.sites[site].role == "train"


def _cohort(out: Path, site: str, preset: Preset) -> PreparedCohort:
    config = load_site_config(out / "sites" / site / SITE_FILE)
    task = f"{site}: preparing scans"
    return prepare_cohort(config, preset.grid, progress=progress.reporter(task))
