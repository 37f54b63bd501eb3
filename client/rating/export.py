"""What a study writes for the statistics: ``readers.csv``, or the scores by criterion.

Files stay at the site: they name scans.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from iedn.errors import CohortError, ConfigError
from iedn.evaluation.statistics import Estimate
from iedn.files import atomic_write_bytes
from sites.readers import COLUMNS

from .questions import CRITERIA, DIAGNOSIS
from .results import POINTS, CriterionResult
from .score_log import Record, Submission
from .study import Study
from .worklist import divergent, unfinished_readers

READERS_CSV, QUALITY_CSV = "readers.csv", "quality_scores.csv"
QUALITY_COLUMNS = ("case", "reader", "map", "criterion", "score", "time", "stage")


def export_scores(study: Study, record: Record, folder: Path, *, force: bool = False) -> Path:
    """Write a finished study's scores.

    Args:
        study: what was judged.
        record: the log.
        folder: gets ``readers.csv`` (diagnosis) or ``quality_scores.csv``.
        force: replace a file with other content.

    Raises:
        CohortError: somebody has not finished; the message says who and what.
        ConfigError: there is a file with other content.
    """
    if missing := unfinished(study, record):
        raise CohortError("the study is not finished: " + "; ".join(missing))
    is_diagnosis = study.design.kind == "diagnosis"
    path = folder / (READERS_CSV if is_diagnosis else QUALITY_CSV)
    content = (_readers_csv if is_diagnosis else _quality_csv)(study, record).encode()
    if path.exists() and path.read_bytes() != content and not force:
        raise ConfigError("is there with other content", where=str(path), allowed="--force")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    atomic_write_bytes(path, content, mode=0o600)
    return path


def unfinished(study: Study, record: Record) -> list[str]:
    """What is still to be done, a sentence each."""
    found = [
        f"{reader} has not finished first readings" for reader in unfinished_readers(study, record)
    ]
    if found:
        return found
    decided = {(t.case, t.scenario) for _, t in record.latest if t.stage != "initial"}
    left = [task for task in divergent(study, record) if (task.case, task.scenario) not in decided]
    if left:
        found.append(f"{len(left)} divergent readings are not decided")
    return found


def _readers_csv(study: Study, record: Record) -> str:
    rows = []
    for submission in _in_order(record):
        task = submission.task
        rows.append(
            (
                study.cases[task.case].key,
                submission.reader,
                task.scenario,
                submission.scores["", DIAGNOSIS],
                "",
                f"{submission.seconds:g}",
                task.stage,
            )
        )
    return _table(COLUMNS, rows)


def _quality_csv(study: Study, record: Record) -> str:
    rows = []
    for submission in _in_order(record):
        task = submission.task
        key = study.cases[task.case].key
        for (shown, criterion), score in sorted(submission.scores.items()):
            seconds = f"{submission.seconds:g}"
            rows.append((key, submission.reader, shown, criterion, score, seconds, task.stage))
    return _table(QUALITY_COLUMNS, rows)


def _in_order(record: Record) -> list[Submission]:
    """By case, scenario, stage (first readings first) and reader."""
    stages = ("initial", "consensus", "adjudication")
    return sorted(
        record.latest.values(),
        key=lambda s: (s.task.case, s.task.scenario, stages.index(s.task.stage), s.reader),
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def quality_page(results: Sequence[CriterionResult]) -> str:
    """Markdown: means of the final scores and agreement of the first ones."""
    head = ("map", "criterion", "cases", "mean", *(f"{p}" for p in POINTS), "divergent")
    columns = (*head, "r_wg", "ICC(2,1)", "kappa (quadratic)")
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for r in results:
        shares = (f"{100 * share:.1f} %" for share in r.shares)
        estimates = (_estimate(e) for e in (r.r_wg, r.icc, r.kappa))
        cells = (
            *(r.shown, CRITERIA[r.criterion], str(r.num_cases), f"{r.mean:.2f}"),
            *(*shares, str(r.num_divergent), *estimates),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return "not defined"
    if estimate.low != estimate.low:  # one case has no interval
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} ({estimate.low:.2f}-{estimate.high:.2f})"
