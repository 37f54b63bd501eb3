"""Per-group weighted averaging with exact sums; the heart of the federation.

For group g with contributors K_g, deltas D_kg and integer weights w_kg::

    mean_g = sum_{k in K_g} w_kg D_kg / sum_{k in K_g} w_kg

Deltas are quantised to int64 fixed point (2^-30), multiplied by the integer weight and summed as
integers (see ``iedn.fixed_point``), so that the result is bit-identical whatever the order or
grouping of replies. The gate guarantees |delta| <= 2^10 and a total weight <= 2^20 a group:
|sum| <= 2^60 fits an int64. Nothing here draws random numbers, knows Flower or checks updates (see
``gate``).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from iedn.fixed_point import MAX_TOTAL_WEIGHT, ExactSum
from iedn.protocol.checks import Shapes, shapes_of

AggregationName = Literal["per-group", "fedavg"]
Float32Groups = dict[str, dict[str, NDArray[np.float32]]]
Float64Groups = dict[str, dict[str, NDArray[np.float64]]]
Means = Iterable[tuple[str, str, NDArray[np.float64]]]
"""(group, tensor name, mean delta), one tensor after the other."""


@dataclass(frozen=True)
class Update:
    """One site's accepted contribution.

    Attributes:
        deltas: theta_site - theta_global, float32, by group and tensor name.
        weights: declared number of scans behind each group of ``deltas``.
        site_weight: declared number of all training scans; the one weight of plain FedAvg.
    """

    deltas: Mapping[str, Mapping[str, NDArray[np.float32]]]
    weights: Mapping[str, int]
    site_weight: int = 0


@dataclass
class StreamingSum:
    """Running exact sum of updates; holds one int64 model however many sites are added.

    ``per-group`` weighs each group by the scans behind it, and only owners count. ``fedavg`` is
    the baseline: one weight a site, and a site that does not own a group counts as having sent it
    back unchanged, which dilutes rare encoders.
    """

    shapes: Shapes
    method: AggregationName = "per-group"
    _sums: dict[str, dict[str, ExactSum]] = field(default_factory=dict)
    _weights: dict[str, int] = field(default_factory=dict)
    _site_weights: int = 0

    def add(self, update: Update) -> None:
        """Add one update; its arrays are not kept.

        Raises:
            ValueError: a group the model does not have, a weight < 1, or a total above 2^20.
        """
        self._check(update)
        self._site_weights += update.site_weight
        for group, tensors in update.deltas.items():
            weight = self._weight(update, group)
            self._weights[group] = self._weights.get(group, 0) + weight
            if group not in self._sums:
                self._sums[group] = self._zeros(group)
            sums = self._sums[group]
            for name, delta in tensors.items():
                sums[name].add(delta, weight)

    def would_overflow(self, update: Update) -> bool:
        """Whether adding ``update`` would exceed the total weight of 2^20 in any group."""
        site_total = self._site_weights + update.site_weight
        return site_total > MAX_TOTAL_WEIGHT or any(
            self._weights.get(g, 0) + self._weight(update, g) > MAX_TOTAL_WEIGHT
            for g in update.deltas
        )

    def mean_deltas(self) -> Float64Groups:
        """Weighted mean delta of every group that has a contributor, float64."""
        return {
            group: {name: total.mean(self._divisor(group)) for name, total in sums.items()}
            for group, sums in self._sums.items()
        }

    def drain(self) -> Means:
        """Weighted mean delta of one tensor after the other; each sum is let go.

        Besides the model that is made of them, no more than one tensor's mean is in memory.
        """
        for group in list(self._sums):
            sums, divisor = self._sums.pop(group), self._divisor(group)
            for name in list(sums):
                yield group, name, sums.pop(name).mean(divisor)

    def _divisor(self, group: str) -> float:
        return float(self._site_weights if self.method == "fedavg" else self._weights[group])

    def _weight(self, update: Update, group: str) -> int:
        return update.site_weight if self.method == "fedavg" else update.weights[group]

    def _zeros(self, group: str) -> dict[str, ExactSum]:
        return {name: ExactSum(shape) for name, shape in self.shapes[group].items()}

    def _check(self, update: Update) -> None:
        unknown = sorted(set(update.deltas) - set(self.shapes))
        if unknown:
            msg = f"the model has no group {unknown}"
            raise ValueError(msg)
        weights = [self._weight(update, group) for group in update.deltas]
        if any(w < 1 for w in weights):
            msg = f"weights must be >= 1, got {weights}"
            raise ValueError(msg)
        if self.would_overflow(update):
            msg = f"the total weight of a group would exceed {MAX_TOTAL_WEIGHT}"
            raise ValueError(msg)


def apply_step(
    model: Mapping[str, Mapping[str, NDArray[np.float32]]],
    step: Mapping[str, Mapping[str, NDArray[np.float64]]],
) -> Float32Groups:
    """Add ``step`` in float64, round once to float32; groups without a step stay as they are."""
    return {
        group: {
            name: moved(value, step[group][name]) if group in step else value
            for name, value in tensors.items()
        }
        for group, tensors in model.items()
    }


def aggregate(
    model: Mapping[str, Mapping[str, NDArray[np.float32]]],
    updates: Iterable[Update],
    *,
    eta: float = 1.0,
    method: AggregationName = "per-group",
) -> Float32Groups:
    """One round of averaging: ``theta_g + eta * mean_g`` for every group with a contributor.

    Args:
        model: global model, float32, by group and tensor name.
        updates: consumed one at a time; memory does not grow with their number.
        eta: server step size.
        method: ``per-group`` or the plain ``fedavg`` baseline.
    """
    total = StreamingSum(shapes_of(model), method)
    for update in updates:
        total.add(update)
    result = {group: dict(tensors) for group, tensors in model.items()}
    for group, name, mean in total.drain():
        result[group][name] = moved(model[group][name], eta * mean)
    return result


def moved(value: NDArray[np.float32], step: NDArray[np.float64]) -> NDArray[np.float32]:
    """``value + step`` in float64, rounded once to float32; no copy of either is made."""
    result = np.empty(value.shape, np.float32)
    return np.add(value, step, out=result, dtype=np.float64, casting="same_kind")
