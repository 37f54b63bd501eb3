"""What a task looks like on the page: which volumes under which names, and which questions.

In blind mode the page knows map A and map B only; which one is synthetic stays here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from iedn.modalities import TARGET, Modality

from .order import is_synthetic_first
from .questions import Question, diagnosis_questions, quality_questions
from .score_log import Submission, Task
from .study import SYNTHETIC, Series, Study

REAL, MADE = "real", "synthetic"
LETTERS = ("A", "B")
STRUCTURAL = tuple(m.value for m in Modality if m is not Modality.ASL)
_TITLES = {
    Modality.ASL.value: "ASL perfusion",
    SYNTHETIC: "Synthetic CBV",
    TARGET: "Measured CBV",
    Modality.T1WI.value: "T1",
    Modality.T2WI.value: "T2",
    Modality.T1_C.value: "T1, contrast",
}


@dataclass(frozen=True)
class Pane:
    """One volume on the page.

    Attributes:
        key: in the address of the volume: ``map1``, ``map2`` or a modality.
        title: above the picture.
        is_map: a perfusion map, in colour and in the fixed window.
        series: the volume.
    """

    key: str
    title: str
    is_map: bool
    series: Series


def panes(study: Study, task: Task, who: str) -> tuple[Pane, ...]:
    """The volumes of a task: one or two perfusion maps, then the structural series."""
    found = study.cases[task.case].series
    if study.design.kind == "diagnosis":
        shown = Modality.ASL.value if task.scenario == "MRI+ASL" else SYNTHETIC
        maps = [(_TITLES[shown], found[shown])]
    elif study.design.mode == "similarity":
        maps = [(_TITLES[name], found[name]) for name in (TARGET, SYNTHETIC)]
    else:
        sources = _map_sources(study, task, who)
        series = {REAL: TARGET, MADE: SYNTHETIC}
        maps = [(f"Map {a}", found[series[sources[a]]]) for a in LETTERS]
    of_maps = [Pane(f"map{n}", title, True, s) for n, (title, s) in enumerate(maps, start=1)]
    others = [Pane(m, _TITLES.get(m, m), False, found[m]) for m in STRUCTURAL if m in found]
    return (*of_maps, *others)


def questions(study: Study) -> tuple[Question, ...]:
    """What is asked of every task."""
    if study.design.kind == "diagnosis":
        return diagnosis_questions()
    return quality_questions(LETTERS if study.design.mode == "blind" else ())


def to_log(
    study: Study, task: Task, who: str, answers: Mapping[str, int]
) -> dict[tuple[str, str], int]:
    """Answers by the page's keys -> scores by map and question, unblinded."""
    scores = {}
    for key, score in answers.items():
        letter, _, criterion = key.rpartition(".")
        if letter:
            scores[_map_sources(study, task, who)[letter], criterion] = score
        else:
            scores[_only_map(study), key] = score
    return scores


def from_log(study: Study, task: Task, who: str, submission: Submission) -> dict[str, int]:
    """Scores by map and question -> answers by the keys of this reader's page."""
    if study.design.kind == "diagnosis" or study.design.mode == "similarity":
        return {question: score for (_, question), score in submission.scores.items()}
    letters = {source: letter for letter, source in _map_sources(study, task, who).items()}
    return {
        f"{letters[source]}.{criterion}": score
        for (source, criterion), score in submission.scores.items()
    }


def _only_map(study: Study) -> str:
    return MADE if study.design.kind == "quality" else ""


def _map_sources(study: Study, task: Task, who: str) -> dict[str, str]:
    """Letter -> ``real`` or ``synthetic``."""
    if is_synthetic_first(study, task.stage, who, task.case):
        return dict(zip(LETTERS, (MADE, REAL), strict=True))
    return dict(zip(LETTERS, (REAL, MADE), strict=True))
