"""Every random order of a study, from its stored seed: no state, the same after any restart.

What is put in random order is sorted by SHA-256 of seed, purpose, reader and case.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

from sites.readers import SCENARIOS

from .study import Study

Stage = Literal["initial", "consensus", "adjudication"]


def shuffled(study: Study, purpose: str, reader: str, cases: Sequence[int]) -> tuple[int, ...]:
    """The cases' numbers in a random order that is this reader's own."""
    seed = study.design.seed
    return tuple(sorted(cases, key=lambda n: draw(seed, purpose, reader, study.cases[n].key)))


def is_synthetic_first(study: Study, stage: Stage, reader: str, case: int) -> bool:
    """Whether map A is the synthetic one; so for half of the cases (the smaller half if odd)."""
    every = shuffled(study, f"maps:{stage}", reader, range(len(study.cases)))
    return every.index(case) < len(every) // 2


def scenario_order(study: Study, reader: str, case: int) -> tuple[str, str]:
    """The scenarios of a case in a reader's first and second session; balanced over cases."""
    every = shuffled(study, "scenario", reader, range(len(study.cases)))
    first, second = SCENARIOS
    return (first, second) if every.index(case) < len(every) // 2 else (second, first)


def page_id(study: Study, reader: str, task: object) -> str:
    """Name of a task on the page: unguessable, another for every reader and stage."""
    return hashlib.sha256(f"{study.secret}:{reader}:{task}".encode()).hexdigest()[:20]


def draw(seed: int, purpose: str, reader: str, case: str) -> bytes:
    """What cases are sorted by."""
    return hashlib.sha256(f"{seed}:{purpose}:{reader}:{case}".encode()).digest()
