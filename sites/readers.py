"""The reader study of an external cohort: ``readers.csv``, read and checked as a whole.

Two readers judge every case under every scenario; a third decides where they differ. Both first
readings are kept: agreement is theirs, the diagnosis is the consensus. Nothing of it leaves.
"""

import csv
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from iedn.errors import CohortError

from .cohort import IDENTIFIER, LABELS, Label

Scenario = Literal["MRI+ASL", "MRI+sCBV"]
Stage = Literal["initial", "adjudication"]

SCENARIOS: tuple[Scenario, ...] = ("MRI+ASL", "MRI+sCBV")
STAGES: tuple[Stage, ...] = ("initial", "adjudication")
COLUMNS = ("case", "reader", "scenario", "score_or_call", "probability", "time", "stage")
SCORES = (1, 2, 3, 4)
"""1 surely treatment response, 2 rather, 3 rather recurrence, 4 surely recurrence."""
FIRST_RECURRENCE_SCORE = 3
NUM_READERS = 2
_MOST_PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class Reading:
    """One reader's judgement of one case under one scenario.

    Attributes:
        case: ``patient_id/scan_id``.
        reader: who.
        scenario: which images were shown.
        stage: a first reading, or the decision where two differ.
        call: the diagnosis.
        score: 1 to 4; None where only a call was given.
        probability: of recurrence, 0 to 1; None where it was not given.
    """

    case: str
    reader: str
    scenario: Scenario
    stage: Stage
    call: Label
    score: int | None = None
    probability: float | None = None

    @property
    def value(self) -> float:
        """Confidence in recurrence: the probability, else the score, else 1 or 0 for the call."""
        if self.probability is not None:
            return self.probability
        return float(self.call == "recurrence") if self.score is None else float(self.score)


@dataclass(frozen=True)
class Judged:
    """One case under one scenario.

    Attributes:
        case: ``patient_id/scan_id``.
        first: of the two readers, in the order of ``ReaderStudy.readers``.
        adjudication: the third reader's, where the two differ.
    """

    case: str
    first: tuple[Reading, Reading]
    adjudication: Reading | None

    @property
    def call(self) -> Label:
        """The consensus."""
        return self.first[0].call if self.adjudication is None else self.adjudication.call

    @property
    def value(self) -> float:
        """Mean confidence of two who agree, else the third reader's."""
        if self.adjudication is not None:
            return self.adjudication.value
        return (self.first[0].value + self.first[1].value) / NUM_READERS


@dataclass(frozen=True)
class ReaderStudy:
    """A complete reader study.

    Attributes:
        readers: the two of the first readings.
        judged: every case, in the order asked for, by scenario.
    """

    readers: tuple[str, str]
    judged: Mapping[Scenario, tuple[Judged, ...]]


def load_readers(path: Path, cases: Mapping[str, Sequence[str]]) -> ReaderStudy:
    """Read and check ``readers.csv``.

    Args:
        path: the table.
        cases: scans (``patient_id/scan_id``) that must be judged, by patient; ``case`` may be the
            patient alone where there is one scan.

    Raises:
        CohortError: unreadable file, or wrong rows, with line, column, value and what is allowed.
    """
    wrong: list[str] = []
    named = {key: key for keys in cases.values() for key in keys}
    named |= {patient: keys[0] for patient, keys in cases.items() if len(keys) == 1}
    readings = [
        reading
        for line, cells in _read_rows(path)
        if (reading := _reading(line, cells, named, wrong)) is not None
    ]
    wrong += _who_reads(readings)
    if not wrong:
        every = [key for keys in cases.values() for key in keys]
        wrong += _incomplete(readings, every)
    if wrong:
        more = len(wrong) - _MOST_PROBLEMS_SHOWN
        shown = wrong[:_MOST_PROBLEMS_SHOWN] + ([f"and {more} more"] if more > 0 else [])
        raise CohortError("\n".join(f"{path}: {entry}" for entry in shown))
    return _study(readings, [key for keys in cases.values() for key in keys])


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CohortError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    reader = csv.reader(lines)
    header = [cell.strip() for cell in next(reader, [])]
    if sorted(header) != sorted(COLUMNS):
        raise CohortError(f"{path}: the columns are {header}. Allowed: {', '.join(COLUMNS)}")
    rows = []
    for cells in reader:
        if any(cell.strip() for cell in cells):
            if len(cells) != len(header):
                raise CohortError(f"{path}: line {reader.line_num} has {len(cells)} cells")
            stripped = (cell.strip() for cell in cells)
            rows.append((reader.line_num, dict(zip(header, stripped, strict=True))))
    return rows


def _reading(
    line: int, cells: Mapping[str, str], named: Mapping[str, str], wrong: list[str]
) -> Reading | None:
    scores = [str(score) for score in SCORES]
    probability = _probability(cells["probability"])
    allowed = {
        "case": (cells["case"] in named, "patient_id/scan_id of a labelled scan of the manifest"),
        "reader": (
            IDENTIFIER.fullmatch(cells["reader"]) is not None,
            "letters, digits, '.', '_', '-', e.g. reader-1",
        ),
        "scenario": (cells["scenario"] in SCENARIOS, ", ".join(SCENARIOS)),
        "stage": (cells["stage"] in STAGES, ", ".join(STAGES)),
        "score_or_call": (
            cells["score_or_call"] in (*scores, *LABELS),
            f"{', '.join(scores)}, or {', '.join(LABELS)}",
        ),
        "probability": (probability is None or 0 <= probability <= 1, "0 to 1, or nothing"),
    }
    refused = [
        f"line {line}, column {column}: got {cells[column]!r}. Allowed: {text}"
        for column, (is_right, text) in allowed.items()
        if not is_right
    ]
    if refused:
        wrong.extend(refused)
        return None
    score = int(cells["score_or_call"]) if cells["score_or_call"] in scores else None
    by_score: Label = LABELS[0] if (score or 0) >= FIRST_RECURRENCE_SCORE else LABELS[1]
    return Reading(
        case=named[cells["case"]],
        reader=cells["reader"],
        scenario=cast("Scenario", cells["scenario"]),
        stage=cast("Stage", cells["stage"]),
        call=cast("Label", cells["score_or_call"]) if score is None else by_score,
        score=score,
        probability=probability,
    )


def _probability(text: str) -> float | None:
    """The number; NaN, which no range allows, if it is none; None for an empty cell."""
    try:
        return float(text) if text else None
    except ValueError:
        return math.nan


def _who_reads(readings: Iterable[Reading]) -> list[str]:
    """Two readers of first readings, one other of decisions, one kind of confidence."""
    readings = list(readings)
    first = sorted({r.reader for r in readings if r.stage == "initial"})
    third = sorted({r.reader for r in readings if r.stage == "adjudication"} - set(first))
    both = sorted({r.reader for r in readings if r.stage == "adjudication"} & set(first))
    wrong = []
    if len(first) != NUM_READERS:
        wrong.append(f"stage initial has readers {first}. Allowed: exactly two")
    if len(third) > 1:
        wrong.append(f"stage adjudication has readers {third}. Allowed: one third reader")
    if both:
        wrong.append(f"reader {both} decides on readings of their own. Allowed: a third reader")
    kinds = Counter((r.probability is not None, r.score is not None) for r in readings)
    if len(kinds) > 1:
        wrong.append(
            "some rows have a probability or a score and others have not. Allowed: the same in all"
        )
    return wrong


def _incomplete(readings: Sequence[Reading], cases: Sequence[str]) -> list[str]:
    """Every case read once by each reader under every scenario, and decided where they differ."""
    count = Counter((r.scenario, r.case, r.stage, r.reader) for r in readings)
    wrong = [
        f"case {case}, {scenario}, {stage}: {reader} judged it {n} times. Allowed: once"
        for (scenario, case, stage, reader), n in count.items()
        if n > 1
    ]
    readers = sorted({r.reader for r in readings if r.stage == "initial"})
    for scenario in SCENARIOS:
        for case in cases:
            missing = [r for r in readers if not count[scenario, case, "initial", r]]
            if missing:
                wrong.append(f"case {case}, {scenario}: no first reading by {', '.join(missing)}")
                continue
            calls = {
                r.call
                for r in readings
                if (r.scenario, r.case, r.stage) == (scenario, case, "initial")
            }
            decided = any(key[:3] == (scenario, case, "adjudication") for key in count)
            if len(calls) > 1 and not decided:
                wrong.append(f"case {case}, {scenario}: the readers differ and nobody decided")
            if len(calls) == 1 and decided:
                wrong.append(f"case {case}, {scenario}: decided although the readers agree")
    return wrong


def _study(readings: Sequence[Reading], cases: Sequence[str]) -> ReaderStudy:
    one, two = sorted({r.reader for r in readings if r.stage == "initial"})
    found = {(r.scenario, r.case, r.stage, r.reader): r for r in readings}
    decided = {(r.scenario, r.case): r for r in readings if r.stage == "adjudication"}
    judged = {
        scenario: tuple(
            Judged(
                case,
                (found[scenario, case, "initial", one], found[scenario, case, "initial", two]),
                decided.get((scenario, case)),
            )
            for case in cases
        )
        for scenario in SCENARIOS
    }
    return ReaderStudy((one, two), judged)
