"""What a reader has to do now, and why there may be nothing: one pure function of the log.

    reader       first readings -> [discussion of divergent scores] -> done
    reader       session 1 -> washout -> session 2 -> done                (diagnosis)
    adjudicator  waits for both readers -> divergent cases -> done

A session ends when its reader finishes it; until then its answers may be corrected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sites.readers import FIRST_RECURRENCE_SCORE, NUM_READERS

from .order import Stage, scenario_order, shuffled
from .questions import DIAGNOSIS
from .score_log import Reader, Record, Submission, Task
from .study import Study


@dataclass(frozen=True)
class Worklist:
    """A reader's present session.

    Attributes:
        stage: of the session.
        session: 1 or 2.
        tasks: in the order in which they are shown; empty where there is nothing to do now.
        who: under whose name answers are logged; both readers' in a discussion.
        notice: why there is nothing to do.
        opens: when there will be, if that is known.
    """

    stage: Stage
    session: int
    tasks: tuple[Task, ...]
    who: str
    notice: str = ""
    opens: datetime | None = None


def first_readers(record: Record) -> tuple[str, ...]:
    """Names of those who give first readings, sorted."""
    return tuple(sorted(r.name for r in record.readers.values() if r.role == "reader"))


def together(record: Record) -> str:
    """The name under which both readers' joint decisions are logged."""
    return "+".join(first_readers(record))


def worklist(study: Study, record: Record, reader: Reader, now: datetime) -> Worklist:
    """What the reader does now.

    Args:
        study: what is judged.
        record: everything so far.
        reader: who asks.
        now: UTC.
    """
    name = reader.name
    if reader.role == "adjudicator":
        return _decide(study, record, name, "adjudication", now)
    for session in range(1, num_sessions(study) + 1):
        if (name, "initial", session) in record.closed:
            continue
        opens = _opens(study, record, name, session)
        if opens is not None and now < opens:
            return _nothing("initial", session, name, _washout(study, opens), opens)
        order = shuffled(study, f"session-{session}", name, range(len(study.cases)))
        tasks = tuple(initial_task(study, name, case, session) for case in order)
        return Worklist("initial", session, tasks, name)
    if study.design.kind == "quality" and study.design.decision == "discussion":
        return _decide(study, record, together(record), "consensus", now)
    return _nothing("initial", 1, name, "All your readings are finished. Thank you.")


def num_sessions(study: Study) -> int:
    """Sessions of first readings."""
    return 2 if study.design.kind == "diagnosis" else 1


def initial_task(study: Study, reader: str, case: int, session: int) -> Task:
    """A reader's first reading of a case in one of the sessions."""
    if study.design.kind == "quality":
        return Task("initial", case)
    return Task("initial", case, scenario_order(study, reader, case)[session - 1])


def unfinished_readers(study: Study, record: Record) -> list[str]:
    """Who has not finished first readings; two nameless ones stand for readers not yet added."""
    names = [*first_readers(record), "a first reader", "a second reader"][:NUM_READERS]
    last = num_sessions(study)
    return [n for n in names if (n, "initial", last) not in record.closed]


def divergent(study: Study, record: Record) -> tuple[Task, ...]:
    """First readings, of both readers, that need a decision: in the manifest's order.

    Quality: any score differs. Diagnosis: the calls differ (3 and 4 are recurrence).
    """
    readers = first_readers(record)
    tasks = dict.fromkeys(task for _, task in record.latest if task.stage == "initial")
    ordered = sorted(tasks, key=lambda task: (task.case, task.scenario))
    found = []
    for task in ordered:
        pair = [record.latest.get((reader, task)) for reader in readers]
        given = [submission for submission in pair if submission is not None]
        if len(given) == NUM_READERS and _differ(study, given):
            found.append(task)
    return tuple(found)


def _differ(study: Study, given: Sequence[Submission]) -> bool:
    one, two = given
    if study.design.kind == "quality":
        return dict(one.scores) != dict(two.scores)
    calls = {s.scores["", DIAGNOSIS] >= FIRST_RECURRENCE_SCORE for s in (one, two)}
    return len(calls) > 1


def _opens(study: Study, record: Record, reader: str, session: int) -> datetime | None:
    """When a second session opens: counted from the last answer, or correction, of the first."""
    if session == 1:
        return None
    times = [
        s.time for (who, t), s in record.latest.items() if (who, t.stage) == (reader, "initial")
    ]
    return max(times) + timedelta(days=study.design.washout_days)


def _washout(study: Study, opens: datetime) -> str:
    return (
        f"Washout: your second session opens on {opens:%Y-%m-%d at %H:%M} UTC, "
        f"{study.design.washout_days:g} days after your last reading of the first. Until then, "
        "please do not look at these cases."
    )


def _decide(study: Study, record: Record, who: str, stage: Stage, now: datetime) -> Worklist:
    """Divergent cases in random order; under both scenarios, with a washout between them."""
    waiting = unfinished_readers(study, record)
    if waiting:
        text = f"Decisions begin when both readers have finished; not yet: {', '.join(waiting)}."
        return _nothing(stage, 1, who, text)
    tasks = [Task(stage, t.case, t.scenario) for t in divergent(study, record)]
    by_session = _sessions(study, who, tasks)
    for session, chosen in enumerate(by_session, start=1):
        if not chosen or (who, stage, session) in record.closed:
            continue
        opens = _second_decision(study, record, who, by_session) if session == 2 else None
        if opens is not None and now < opens:
            return _nothing(stage, session, who, _washout(study, opens), opens)
        return Worklist(stage, session, chosen, who)
    text = (
        "Everything is decided. Thank you." if tasks else "Both readers agree: nothing to decide."
    )
    return _nothing(stage, 1, who, text)


def _sessions(study: Study, who: str, tasks: Sequence[Task]) -> list[tuple[Task, ...]]:
    """The tasks by session: the second one of a case, under the other scenario, in the second."""
    order = {c: n for n, c in enumerate(shuffled(study, "decide", who, [t.case for t in tasks]))}
    sessions: list[list[Task]] = [[], []]
    for task in sorted(tasks, key=lambda task: order[task.case]):
        is_second = any(other.case == task.case and other != task for other in sessions[0])
        sessions[int(is_second)].append(task)
    return [tuple(chosen) for chosen in sessions]


def _second_decision(
    study: Study, record: Record, who: str, sessions: Sequence[Sequence[Task]]
) -> datetime:
    times = [record.latest[who, task].time for task in sessions[0] if (who, task) in record.latest]
    return max(times) + timedelta(days=study.design.washout_days)


def _nothing(
    stage: Stage, session: int, who: str, notice: str, opens: datetime | None = None
) -> Worklist:
    return Worklist(stage, session, (), who, notice, opens)


@dataclass(frozen=True)
class Progress:
    """How far a reader is, for the operator; holds no score."""

    reader: str
    role: str
    stage: Stage
    session: int
    done: int
    total: int
    notice: str


def progress_of(study: Study, record: Record, reader: Reader, now: datetime) -> Progress:
    """How far a reader is."""
    work = worklist(study, record, reader, now)
    done = sum((work.who, task) in record.latest for task in work.tasks)
    shown = (work.stage, work.session, done, len(work.tasks), work.notice)
    return Progress(reader.name, reader.role, *shown)
