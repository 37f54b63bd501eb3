"""The reader study in numbers: accuracy of the consensus, agreement of the two first readers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from iedn.errors import StatisticsError
from iedn.evaluation.statistics import (
    Estimate,
    auc_interval,
    cohen_kappa,
    delong_test,
    icc_2_1,
    wilson_interval,
)
from sites.readers import SCENARIOS, Judged, ReaderStudy, Scenario


@dataclass(frozen=True)
class ScenarioResult:
    """One scenario's line of Table 3.

    Attributes:
        auc: of the consensus confidence.
        sensitivity: of the consensus call for recurrence, with Wilson's interval.
        specificity: likewise.
        num_disagreed: cases that the third reader decided.
        icc: of the two readers' confidence, ICC(2,1); None where it is not defined.
        kappa: of their calls; likewise.
    """

    auc: Estimate
    sensitivity: Estimate
    specificity: Estimate
    num_disagreed: int
    icc: Estimate | None
    kappa: Estimate | None


@dataclass(frozen=True)
class ReaderResults:
    """Both scenarios.

    Attributes:
        num_cases: judged.
        readers: of the first readings.
        scenarios: results by scenario.
        p_value: of the difference of areas (DeLong; Obuchowski's covariance); None where it is not
            defined.
    """

    num_cases: int
    readers: tuple[str, str]
    scenarios: Mapping[Scenario, ScenarioResult]
    p_value: float | None


def reader_results(study: ReaderStudy, outcomes: Mapping[str, bool]) -> ReaderResults:
    """Table 3 of a reader study.

    Args:
        study: complete.
        outcomes: by case, whether it is a recurrence; both outcomes occur.
    """
    results = {scenario: _scenario(study.judged[scenario], outcomes) for scenario in SCENARIOS}
    of_asl, of_map = (study.judged[scenario] for scenario in SCENARIOS)
    labels = [outcomes[judged.case] for judged in of_asl]
    patients = [_patient(judged) for judged in of_asl]
    try:
        p_value = delong_test(
            labels, [j.value for j in of_map], [j.value for j in of_asl], patients=patients
        ).p_value
    except StatisticsError:
        p_value = None
    return ReaderResults(len(of_asl), study.readers, results, p_value)


def _scenario(judged: Sequence[Judged], outcomes: Mapping[str, bool]) -> ScenarioResult:
    labels = [outcomes[j.case] for j in judged]
    called = [j.call == "recurrence" for j in judged]
    found = sum(c and label for c, label in zip(called, labels, strict=True))
    cleared = sum(not c and not label for c, label in zip(called, labels, strict=True))
    first = [(j.first[0], j.first[1]) for j in judged]
    return ScenarioResult(
        auc=auc_interval(labels, [j.value for j in judged], patients=[_patient(j) for j in judged]),
        sensitivity=_share(found, sum(labels)),
        specificity=_share(cleared, len(labels) - sum(labels)),
        num_disagreed=sum(j.adjudication is not None for j in judged),
        icc=_icc([[one.value, two.value] for one, two in first]),
        kappa=_kappa([one.call for one, _ in first], [two.call for _, two in first]),
    )


def _share(successes: int, trials: int) -> Estimate:
    return Estimate(successes / trials, *wilson_interval(successes, trials))


def _icc(ratings: Sequence[Sequence[float]]) -> Estimate | None:
    try:
        return icc_2_1(ratings)
    except StatisticsError:
        return None


def _kappa(one: Sequence[str], two: Sequence[str]) -> Estimate | None:
    try:
        return cohen_kappa(one, two)
    except StatisticsError:
        return None


def _patient(judged: Judged) -> str:
    return judged.case.split("/")[0]
