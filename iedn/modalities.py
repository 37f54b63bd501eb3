"""The closed set of input modalities; the only place where their names are spelled.

The order of the enum is the order everywhere: in manifests, tables, models and messages.
"""

from collections.abc import Iterable
from enum import StrEnum
from itertools import combinations


class Modality(StrEnum):
    """An input of the network. The target, CBV, is deliberately not a member."""

    T1WI = "T1WI"
    T2WI = "T2WI"
    FLAIR = "FLAIR"
    ADC = "ADC"
    T1_C = "T1_C"
    ASL = "ASL"


TARGET = "CBV"
BRAIN_MASK = "brain_mask"


def in_order(modalities: Iterable[Modality | str]) -> tuple[Modality, ...]:
    """The given modalities without repeats, in the order of the enum.

    Raises:
        ValueError: a name that is not a modality.
    """
    wanted = {Modality(m) for m in modalities}
    return tuple(m for m in Modality if m in wanted)


def all_subsets() -> list[tuple[Modality, ...]]:
    """The 63 non-empty subsets of the six modalities, smallest first."""
    members = tuple(Modality)
    return [s for size in range(1, len(members) + 1) for s in combinations(members, size)]
