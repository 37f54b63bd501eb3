"""Server optimisers: what the coordinator does with the averaged delta of a group.

All act group by group; a group without contributors in a round keeps its moments and its value.
FedAvgM: Hsu et al. 2019 (arXiv:1909.06335). FedAdam: Reddi et al. 2021 (arXiv:2003.00295),
algorithm 2, without bias correction.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from iedn.config import FrozenModel

from .aggregation import Float32Groups, Float64Groups, Means, moved

OptimizerName = Literal["fedavg", "fedavgm", "fedadam"]
Moments = dict[str, NDArray[np.float64]]
"""Server-optimiser state: ``<moment>/<group>/<tensor>`` -> float64 array."""


class ServerOptimizerConfig(FrozenModel):
    """The server optimiser and its step.

    Attributes:
        name: ``fedavg`` adds eta * mean delta; ``fedavgm`` and ``fedadam`` keep moments.
        eta: server step size.
        momentum: beta of FedAvgM, beta_1 of FedAdam.
        second_momentum: beta_2 of FedAdam.
        tau: FedAdam's floor of the denominator.
    """

    name: OptimizerName = "fedavg"
    eta: float = Field(default=1.0, gt=0.0, le=10.0)
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    second_momentum: float = Field(default=0.99, ge=0.0, lt=1.0)
    tau: float = Field(default=1e-3, gt=0.0)


def server_step(
    means: Mapping[str, Mapping[str, NDArray[np.float64]]],
    moments: Moments,
    config: ServerOptimizerConfig,
) -> tuple[Float64Groups, Moments]:
    """The step to add to the model, and the moments after it.

    Args:
        means: averaged deltas of the groups with contributors.
        moments: state before the round; not changed.
        config: which optimiser.
    """
    after = dict(moments)
    step: Float64Groups = {group: {} for group in means}
    for group, tensors in means.items():
        for name, delta in tensors.items():
            step[group][name] = config.eta * _direction(f"{group}/{name}", delta, after, config)
    return step, after


def advance(
    model: Float32Groups, means: Means, moments: Moments, config: ServerOptimizerConfig
) -> tuple[Float32Groups, Moments]:
    """The next model and moments, tensor by tensor; the means are used up.

    The same as ``server_step`` and ``apply_step``, without a step of the model's size in memory.
    """
    after = dict(moments)
    result = {group: dict(tensors) for group, tensors in model.items()}
    for group, name, step in steps(means, after, config):
        result[group][name] = moved(model[group][name], step)
    return result, after


def steps(means: Means, moments: Moments, config: ServerOptimizerConfig) -> Means:
    """What to add to one tensor of the model after the other.

    Args:
        means: used up.
        moments: before the round; changed, tensor by tensor, into those after it.
        config: which optimiser.
    """
    for group, name, mean in means:
        yield group, name, config.eta * _direction(f"{group}/{name}", mean, moments, config)


def _direction(
    key: str, delta: NDArray[np.float64], moments: Moments, config: ServerOptimizerConfig
) -> NDArray[np.float64]:
    if config.name == "fedavg":
        return delta
    first = moments.get(f"m/{key}", np.zeros_like(delta))
    if config.name == "fedavgm":
        moments[f"m/{key}"] = config.momentum * first + delta
        return moments[f"m/{key}"]
    second = moments.get(f"v/{key}", np.full_like(delta, config.tau**2))
    beta_1, beta_2 = config.momentum, config.second_momentum
    moments[f"m/{key}"] = beta_1 * first + (1.0 - beta_1) * delta
    moments[f"v/{key}"] = beta_2 * second + (1.0 - beta_2) * delta**2
    return np.asarray(moments[f"m/{key}"] / (np.sqrt(moments[f"v/{key}"]) + config.tau))
