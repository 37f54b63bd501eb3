"""The study as one reader's page sees it; knows nothing of HTTP.

Every answer of the page is checked here again: it must be a task of the reader's present session,
whose maps have been drawn, with a score for every question and within its scale.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from iedn.errors import IednError

from .order import page_id
from .presentation import Pane, from_log, panes, questions, to_log
from .score_log import Reader, Record, ScoreLog, StaleError, Submission, Task
from .session import Session, Sessions, reader_of
from .study import load_study, read_volume_bytes
from .worklist import Worklist, first_readers, worklist

WRONG_TOKEN = "This personal link is not valid. Ask who runs the study for your link."  # noqa: S105
EXPIRED = "Your session has ended. Open your personal link again; nothing given is lost."


class RatingError(IednError):
    """A request that the page must not have; shown to the reader.

    Args:
        status: of HTTP.
        problem: what is wrong and what to do.
    """

    def __init__(self, status: int, problem: str) -> None:
        self.status = status
        super().__init__(problem)


class Desk:
    """A study that is being served.

    Args:
        folder: the study's.
        idle: how long a session lasts without a request.
        now: the time, UTC.
    """

    def __init__(self, folder: Path, *, idle: timedelta, now: Callable[[], datetime]) -> None:
        self._folder, self._now = folder, now
        self._study = load_study(folder)
        self._log = ScoreLog(folder)
        self._sessions = Sessions(idle, now)

    def login(self, token: str) -> str:
        """A session's id for a personal token."""
        reader = reader_of(token, self._log.record().readers)
        if reader is None:
            raise RatingError(401, WRONG_TOKEN)
        return self._sessions.begin(reader.name)

    def logout(self, key: str | None) -> None:
        """End a session."""
        self._sessions.end(key)

    def state(self, key: str | None, position: int | None = None) -> dict[str, Any]:
        """Everything the page shows.

        Args:
            key: of the session.
            position: of the task to show, from 0; by default the first without an answer.
        """
        session, record = self._session(key), self._log.record()
        work = self._work(session, record)
        done = [(work.who, task) in record.latest for task in work.tasks]
        page: dict[str, Any] = {
            "reader": session.reader,
            "study": self._study.design.name,
            "kind": self._study.design.kind,
            "mode": self._study.design.mode,
            "stage": work.stage,
            "session": work.session,
            "research_use": self._study.research_use,
            "notice": work.notice,
            "opens": None if work.opens is None else work.opens.isoformat(),
            "total": len(work.tasks),
            "done": sum(done),
            "can_finish": bool(done) and all(done),
            "needs_partner": bool(work.tasks) and self._needs_partner(session, work),
            "item": None,
        }
        if work.tasks and not page["needs_partner"]:
            page["item"] = self._item(record, work, _chosen(done, position))
        return page

    def volume(self, key: str | None, item: str, pane: str) -> bytes:
        """The file of one pane of a task of the present session."""
        session, record = self._session(key), self._log.record()
        work, task = self._task(session, record, item)
        shown: dict[str, Pane] = {p.key: p for p in panes(self._study, task, work.who)}
        if pane not in shown:
            raise RatingError(404, "There is no such image.")
        return read_volume_bytes(self._folder, shown[pane].series)

    def drawn(self, key: str | None, item: str) -> None:
        """The page has drawn the maps of a task: from now on it may be answered."""
        session = self._session(key)
        self._task(session, self._log.record(), item)
        session.drawn.setdefault(item, self._now())

    def submit(self, key: str | None, item: str, answers: Mapping[str, int], revision: int) -> None:
        """Log a judgement, or a correction of one.

        Args:
            key: of the session.
            item: of the task on the page.
            answers: score by question, all of them.
            revision: how many judgements of it the page knew of.
        """
        session, record = self._session(key), self._log.record()
        work, task = self._task(session, record, item)
        self._check(answers)
        began = session.drawn.get(item)
        if began is None:
            raise RatingError(409, "The maps have not been drawn yet; nothing was recorded.")
        now = self._now()
        submission = Submission(
            reader=work.who,
            task=task,
            scores=to_log(self._study, task, work.who, answers),
            seconds=round((now - began).total_seconds(), 1),
            time=now,
        )
        try:
            self._log.append(submission, revision=revision)
        except StaleError:
            problem = "This case was scored in another window meanwhile; nothing was recorded."
            raise RatingError(409, problem) from None
        del session.drawn[item]

    def finish(self, key: str | None) -> None:
        """End the present session for good; all its tasks must be answered."""
        session, record = self._session(key), self._log.record()
        work = self._work(session, record)
        open_tasks = [t for t in work.tasks if (work.who, t) not in record.latest]
        if not work.tasks or open_tasks or self._needs_partner(session, work):
            raise RatingError(409, f"{len(open_tasks)} cases are still to be scored.")
        self._log.close_session(work.who, work.stage, work.session, self._now())

    def join(self, key: str | None, token: str) -> None:
        """The second reader sits down beside the first: divergent scores are discussed."""
        session, record = self._session(key), self._log.record()
        partner = reader_of(token, record.readers)
        others = set(first_readers(record)) - {session.reader}
        if partner is None or partner.name not in others:
            raise RatingError(401, "This is not the other reader's code.")
        session.partner = partner.name

    def _session(self, key: str | None) -> Session:
        session = self._sessions.get(key)
        if session is None:
            raise RatingError(401, EXPIRED)
        return session

    def _work(self, session: Session, record: Record) -> Worklist:
        reader: Reader = record.readers[session.reader]
        return worklist(self._study, record, reader, self._now())

    def _needs_partner(self, session: Session, work: Worklist) -> bool:
        return work.stage == "consensus" and not session.partner

    def _task(self, session: Session, record: Record, item: str) -> tuple[Worklist, Task]:
        work = self._work(session, record)
        if not self._needs_partner(session, work):
            for task in work.tasks:
                if page_id(self._study, work.who, task) == item:
                    return work, task
        raise RatingError(404, "There is no such case in your present session.")

    def _item(self, record: Record, work: Worklist, position: int) -> dict[str, Any]:
        task = work.tasks[position]
        item = page_id(self._study, work.who, task)
        given = record.latest.get((work.who, task))
        return {
            "id": item,
            "position": position,
            "scenario": task.scenario,
            "start_mm": self._study.cases[task.case].start_mm,
            "panes": [
                {
                    "key": pane.key,
                    "title": pane.title,
                    "is_map": pane.is_map,
                    "window": pane.series.window,
                    "url": f"/api/items/{item}/volumes/{pane.key}.nii",
                }
                for pane in panes(self._study, task, work.who)
            ],
            "questions": [asdict(question) for question in questions(self._study)],
            "answers": {} if given is None else from_log(self._study, task, work.who, given),
            "revision": record.revisions.get((work.who, task), 0),
            "readings": self._readings(record, work, task),
        }

    def _readings(self, record: Record, work: Worklist, task: Task) -> list[dict[str, int]]:
        """What the two readers gave, without their names, where it is to be decided."""
        if task.stage == "initial":
            return []
        first = Task("initial", task.case, task.scenario)
        pair = [record.latest[reader, first] for reader in first_readers(record)]
        return [from_log(self._study, task, work.who, submission) for submission in pair]

    def _check(self, answers: Mapping[str, int]) -> None:
        asked = {question.key: question.options for question in questions(self._study)}
        if set(answers) != set(asked):
            raise RatingError(422, f"Answers are wanted for {', '.join(asked)}.")
        for question, score in answers.items():
            if score not in asked[question]:
                allowed = ", ".join(map(str, asked[question]))
                raise RatingError(422, f"{question}: got {score}. Allowed: {allowed}")


def _chosen(done: list[bool], position: int | None) -> int:
    """The position asked for, if there is one; else the first task without an answer."""
    if position is not None and 0 <= position < len(done):
        return position
    return done.index(False) if False in done else len(done) - 1
