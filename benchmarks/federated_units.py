"""What the benchmark of federated synthesis trains: its units, and the settings of a federation."""

from dataclasses import dataclass, field
from typing import Any, Literal

from iedn.evaluation.combinations import Combination
from iedn.modalities import Modality
from server.aggregation import AggregationName
from server.optimizers import ServerOptimizerConfig
from simulation.scenario import ScenarioConfig

Asl = Literal["all", "one", "half"]
Method = Literal["local", "fedavg", "modality-aware", "pooled", "fedprox", "fedadam", "tuned"]
Lesions = Literal["default", "hard"]

SIX: Combination = tuple(Modality)
SUBSETS: dict[str, Combination] = {
    "all six": SIX,
    "without ASL": tuple(m for m in Modality if m is not Modality.ASL),
    "T1WI, T2WI, FLAIR": (Modality.T1WI, Modality.T2WI, Modality.FLAIR),
}
ASL_SITES: dict[Asl, int] = {"all": 5, "one": 1, "half": 3}

CORE: tuple[Method, ...] = ("pooled", "modality-aware", "fedavg", "local")
OPTIMISERS: tuple[Method, ...] = ("fedprox", "fedadam")


@dataclass(frozen=True)
class Settings:
    """How a model is trained; ``None`` is as the scenario says.

    Attributes:
        aggregation: of the coordinator.
        optimizer: of the coordinator.
        rounds: of the federation.
        training: keys of ``TrainingConfig`` with other values.
    """

    aggregation: AggregationName = "per-group"
    optimizer: ServerOptimizerConfig = field(default_factory=ServerOptimizerConfig)
    rounds: int | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def applied(self, scenario: ScenarioConfig) -> ScenarioConfig:
        rounds = {} if self.rounds is None else {"count": self.rounds}
        changed = {
            "training": scenario.training.model_copy(update=self.training),
            "rounds": scenario.rounds.model_copy(update=rounds),
        }
        return scenario.model_copy(update=changed)


def _momentum(momentum: float) -> ServerOptimizerConfig:
    return ServerOptimizerConfig(name="fedavgm", momentum=momentum)


_TWO_STEPS = {"local_steps": 2}
FEDERATED_TRIALS = {
    "as planned": Settings(),
    "momentum 0.5": Settings(optimizer=_momentum(0.5)),
    "momentum 0.7": Settings(optimizer=_momentum(0.7)),
    "momentum 0.9": Settings(optimizer=_momentum(0.9)),
    "twice the learning rate": Settings(training={"learning_rate": 4e-3}),
    "50 rounds of 2 steps": Settings(rounds=50, training=_TWO_STEPS),
    "50 rounds of 2 steps, momentum 0.5": Settings(
        rounds=50, training=_TWO_STEPS, optimizer=_momentum(0.5)
    ),
}
POOLED_TRIALS = {
    "pooled, as planned": Settings(),
    "pooled, twice the learning rate": Settings(training={"learning_rate": 4e-3}),
}
"""The reference gets a chance, too."""
TUNED = "50 rounds of 2 steps, momentum 0.5"
"""The best of the federated trials by PSNR."""

SETTINGS: dict[Method, Settings] = {
    "pooled": Settings(),
    "fedavg": Settings(aggregation="fedavg"),
    "modality-aware": Settings(),
    "fedprox": Settings(training={"proximal_mu": 0.01}),
    "fedadam": Settings(optimizer=ServerOptimizerConfig(name="fedadam", eta=0.01)),
    "tuned": FEDERATED_TRIALS[TUNED],
}


@dataclass(frozen=True)
class Unit:
    """What is trained once."""

    lesions: Lesions
    asl: Asl
    method: Method
    seed: int

    @property
    def name(self) -> str:
        return f"{self.lesions}/{self.asl}/{self.method}/{self.seed}"


def core_units(seeds: int) -> list[Unit]:
    """Seed by seed, so that what is there early is complete.

    Where every site has every modality both ways of averaging are one: there FedAvg is run once,
    to see that it is so.
    """
    return [
        Unit("default", asl, method, seed)
        for seed in range(1, seeds + 1)
        for asl in ("one", "all")
        for method in CORE
        if (asl, method) != ("all", "fedavg") or seed == 1
    ]


def tuned_units(seeds: int) -> list[Unit]:
    """The best of the trials, on the benchmark's cohort; where the bars are first."""
    return [
        Unit("default", asl, "tuned", seed)
        for asl in ("all", "one")
        for seed in range(1, seeds + 1)
    ]


def exploratory_units() -> list[Unit]:
    return [
        *(Unit("default", "one", method, 1) for method in OPTIMISERS),
        *(Unit("default", "half", method, 1) for method in CORE),
        *(Unit("hard", asl, method, 1) for asl in ("one", "all") for method in CORE),
    ]
