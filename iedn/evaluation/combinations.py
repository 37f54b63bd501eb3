"""Sets of input modalities that are compared with each other: the paper's 17, or all 63."""

from itertools import combinations

from ..errors import ConfigError
from ..modalities import Modality, all_subsets, in_order

Combination = tuple[Modality, ...]

STRUCTURAL: Combination = (Modality.T1WI, Modality.T2WI, Modality.FLAIR, Modality.ADC)
"""Standard MRI without contrast agent."""
BEST_WITHOUT_CONTRAST = in_order(["ASL", "T1WI", "T2WI", "ADC"])
WITH_CONTRAST = in_order([*BEST_WITHOUT_CONTRAST, "T1_C"])


def paper_combinations() -> tuple[Combination, ...]:
    """The rows of the paper's Table 2: ASL with every subset of standard MRI, and one with T1_C.

    The paper's text speaks of 16 combinations, its table has these 17.
    """
    with_asl = (
        in_order([*subset, Modality.ASL])
        for size in range(len(STRUCTURAL) + 1)
        for subset in combinations(STRUCTURAL, size)
    )
    return (*with_asl, WITH_CONTRAST)


def combinations_of(text: str) -> tuple[Combination, ...]:
    """The combinations that a user asks for: ``paper``, ``all``, or some, ``ASL,T1WI+ASL``.

    Raises:
        ConfigError: a name that is not a modality.
    """
    if text in ("paper", "all"):
        return paper_combinations() if text == "paper" else tuple(all_subsets())
    try:
        return tuple(dict.fromkeys(in_order(part.split("+")) for part in text.split(",")))
    except ValueError:
        raise ConfigError(
            f"got {text!r}",
            where="--combinations",
            allowed=f"paper, all, or e.g. ASL,T1WI+ASL from {', '.join(Modality)}",
        ) from None


def name_of(combination: Combination) -> str:
    """A combination as it stands in tables and file names, e.g. ``T1WI+ASL``."""
    return "+".join(in_order(combination))
