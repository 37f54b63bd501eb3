"""The sum of masked updates: noise until the last member of a group has sent its own.

Opened, it is the very integer that the plain sum gives (see ``iedn.masking``). A group that misses
a member stays closed, for everybody and for good.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from iedn.errors import RefusedError
from iedn.fixed_point import MAX_TOTAL_WEIGHT, SCALE, mean_of
from iedn.protocol.checks import MAX_ABS_DELTA, Shapes

from .aggregation import Float64Groups

RingTensors = Mapping[str, NDArray[np.uint64]]


@dataclass
class MaskedSum:
    """Running sum modulo 2^64; holds one model of integers however many sites are added.

    Attributes:
        shapes: tensors of the model, by group and name.
        members: sites that signed for each group.
    """

    shapes: Shapes
    members: Mapping[str, tuple[str, ...]]
    _sums: dict[str, dict[str, NDArray[np.uint64]]] = field(default_factory=dict)
    _weights: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, site: str, groups: Mapping[str, RingTensors], weights: Mapping[str, int]) -> None:
        """Add what a member has sent; its arrays are not kept.

        Raises:
            RefusedError: ``wrong-weight``: the total weight of a group would exceed 2^20.
        """
        for group in groups:
            if sum(self._weights.get(group, {}).values()) + weights[group] > MAX_TOTAL_WEIGHT:
                raise RefusedError("wrong-weight", f"the total weight of {group} exceeds 2^20")
        for group, tensors in groups.items():
            self._weights.setdefault(group, {})[site] = weights[group]
            sums = self._sums.setdefault(group, self._zeros(group))
            for name, tensor in tensors.items():
                np.add(sums[name], tensor, out=sums[name])

    def missing(self) -> dict[str, tuple[str, ...]]:
        """Members that have sent nothing, of each group that cannot be opened."""
        absent = {
            group: tuple(s for s in members if s not in self._weights.get(group, {}))
            for group, members in self.members.items()
        }
        return {group: sites for group, sites in absent.items() if sites}

    def open(self, norm_bound: float) -> tuple[Float64Groups, dict[str, str]]:
        """Mean deltas of the groups that are complete, and why others of these are not credible.

        The sums are let go.

        An honest sum keeps bounds that noise does not: each element within the range of a delta
        times the weights, and the norm of the mean within that of a single update.

        Args:
            norm_bound: largest Euclidean norm of an update.
        """
        means: Float64Groups = {}
        refused = {}
        missing = self.missing()
        for group in sorted(set(self._sums) - set(missing)):
            weight = sum(self._weights[group].values())
            totals = {name: x.view(np.int64) for name, x in self._sums.pop(group).items()}
            if any(_exceeds(total, MAX_ABS_DELTA * SCALE * weight) for total in totals.values()):
                refused[group] = "the opened sum is out of range: a member masked something else"
                continue
            mean = {name: mean_of(total, weight) for name, total in totals.items()}
            norm = float(np.sqrt(sum(float(x.ravel() @ x.ravel()) for x in mean.values())))
            if norm > norm_bound:
                refused[group] = f"the mean's norm {norm:.4g} exceeds {norm_bound:.4g}"
                continue
            means[group] = mean
        return means, refused

    def _zeros(self, group: str) -> dict[str, NDArray[np.uint64]]:
        return {name: np.zeros(shape, np.uint64) for name, shape in self.shapes[group].items()}


def _exceeds(total: NDArray[np.int64], bound: float) -> bool:
    return bool(total.size) and max(-float(total.min()), float(total.max())) > bound
