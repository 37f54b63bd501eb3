"""A quality study in numbers: mean scores of the decided readings, agreement of the first ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from iedn.errors import StatisticsError
from iedn.evaluation.statistics import Estimate, cohen_kappa, icc_2_1, r_wg

from .questions import CRITERIA, QUALITY_SCALE, Criterion
from .score_log import Record, Submission, Task
from .study import Study
from .worklist import first_readers

POINTS = tuple(QUALITY_SCALE)


@dataclass(frozen=True)
class CriterionResult:
    """One criterion of one kind of map.

    Attributes:
        shown: ``real`` or ``synthetic``.
        criterion: which.
        num_cases: scored by both readers.
        mean: of the final scores, 0 to 3.
        shares: of the final scores at 0, 1, 2 and 3.
        num_divergent: cases whose first scores differ.
        r_wg: within-group agreement of the first scores, four points.
        icc: ICC(2,1) of the first scores; None where it is not defined.
        kappa: Cohen's with quadratic weights; likewise.
    """

    shown: str
    criterion: Criterion
    num_cases: int
    mean: float
    shares: tuple[float, ...]
    num_divergent: int
    r_wg: Estimate
    icc: Estimate | None
    kappa: Estimate | None


def quality_results(study: Study, record: Record) -> list[CriterionResult]:
    """All criteria of all maps; of the cases that both readers have scored.

    The final score is the decision's, where there is one, else the first reader's (who agrees).
    """
    readers = first_readers(record)
    decided = {t.case: s for (_, t), s in record.latest.items() if t.stage != "initial"}
    cases = {
        case.number: [record.latest.get((r, Task("initial", case.number))) for r in readers]
        for case in study.cases
    }
    pairs = {n: [s for s in pair if s is not None] for n, pair in cases.items()}
    both = {n: pair for n, pair in pairs.items() if len(pair) == len(readers) == 2}
    if not both:
        return []
    shown = sorted({m for pair in both.values() for m, _ in pair[0].scores})
    return [_criterion(m, c, both, decided) for m in shown for c in CRITERIA]


def _criterion(
    shown: str,
    criterion: Criterion,
    both: Mapping[int, Sequence[Submission]],
    decided: Mapping[int, Submission],
) -> CriterionResult:
    question = (shown, criterion)
    table = np.array([[s.scores[question] for s in pair] for pair in both.values()])
    final = np.array([decided.get(n, pair[0]).scores[question] for n, pair in both.items()])
    return CriterionResult(
        shown=shown,
        criterion=criterion,
        num_cases=len(final),
        mean=float(final.mean()),
        shares=tuple(float((final == point).mean()) for point in POINTS),
        num_divergent=int((table[:, 0] != table[:, 1]).sum()),
        r_wg=r_wg(table, num_categories=len(POINTS)),
        icc=_icc(table),
        kappa=_kappa(table),
    )


def _icc(table: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Estimate | None:
    try:
        return icc_2_1(table)
    except StatisticsError:
        return None


def _kappa(table: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Estimate | None:
    try:
        return cohen_kappa(table[:, 0], table[:, 1], weights="quadratic", categories=POINTS)
    except StatisticsError:
        return None
