"""The score log: SQLite, append-only. A correction is a new row, and the old one stays.

Triggers refuse UPDATE, DELETE and the hidden delete of INSERT OR REPLACE, whatever program tries.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, cast

from iedn.errors import ConfigError

from .order import Stage

SCORES_FILE = "scores.sqlite"
Role = Literal["reader", "adjudicator"]
_PATIENCE_S = 10.0
_TABLES = {
    "scores": """
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        submission INTEGER NOT NULL,
        time TEXT NOT NULL,
        reader TEXT NOT NULL,
        stage TEXT NOT NULL CHECK (stage IN ('initial', 'consensus', 'adjudication')),
        case_number INTEGER NOT NULL,
        scenario TEXT NOT NULL,
        map TEXT NOT NULL,
        question TEXT NOT NULL,
        score INTEGER NOT NULL CHECK (score BETWEEN 0 AND 4),
        seconds REAL NOT NULL
    """,
    "closings": """
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        time TEXT NOT NULL,
        reader TEXT NOT NULL,
        stage TEXT NOT NULL,
        session INTEGER NOT NULL
    """,
    "readers": """
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        time TEXT NOT NULL,
        name TEXT NOT NULL,
        role TEXT NOT NULL CHECK (role IN ('reader', 'adjudicator')),
        token_sha256 TEXT NOT NULL
    """,
}

_REFUSED = {
    "UPDATE": "",
    "DELETE": "",
    "INSERT": "WHEN EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id)",
}


@dataclass(frozen=True)
class Task:
    """What a reader judges at once.

    Attributes:
        stage: first reading, or a decision.
        case: number of the case.
        scenario: of a diagnosis study; else empty.
    """

    stage: Stage
    case: int
    scenario: str = ""


@dataclass(frozen=True)
class Submission:
    """One judgement, as it was given.

    Attributes:
        reader: who; two names joined by ``+`` after a discussion.
        task: what.
        scores: by map (``real``, ``synthetic``, or empty) and question.
        seconds: from the maps' being drawn to the answer.
        time: UTC.
    """

    reader: str
    task: Task
    scores: Mapping[tuple[str, str], int]
    seconds: float
    time: datetime


@dataclass(frozen=True)
class Reader:
    """Somebody who takes part; ``token_sha256`` is of the secret in the personal link."""

    name: str
    role: Role
    token_sha256: str


@dataclass(frozen=True)
class Record:
    """Everything in the log, corrections applied.

    Attributes:
        readers: by name; a later entry of a name replaces its token.
        latest: the submission that counts, by reader and task.
        revisions: how many submissions there are, by reader and task.
        closed: when a session was finished, by reader, stage and session.
    """

    readers: Mapping[str, Reader]
    latest: Mapping[tuple[str, Task], Submission]
    revisions: Mapping[tuple[str, Task], int]
    closed: Mapping[tuple[str, Stage, int], datetime]


class StaleError(Exception):
    """The case was scored meanwhile, in another window."""


class ScoreLog:
    """A study's log; every call opens the file for itself, so that threads may share this.

    Args:
        folder: the study's; the file is made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / SCORES_FILE
        self._path.touch(mode=0o600)
        with self._transaction() as connection:
            for table, columns in _TABLES.items():
                connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns}) STRICT")
                for action, when in _REFUSED.items():
                    connection.execute(
                        f"CREATE TRIGGER IF NOT EXISTS {table}_no_{action.lower()} "
                        f"BEFORE {action} ON {table} {when.format(table=table)} "
                        "BEGIN SELECT RAISE(ABORT, 'the score log is append-only'); END"
                    )

    def append(self, submission: Submission, *, revision: int) -> None:
        """Add a judgement, or a correction of one.

        Args:
            submission: what was given.
            revision: how many judgements of this task by this reader the page knew of.

        Raises:
            StaleError: there is another number of them.
        """
        task, time = submission.task, _text(submission.time)
        where = (submission.reader, task.stage, task.case, task.scenario)
        with self._transaction() as connection:
            (found,) = connection.execute(
                "SELECT COUNT(DISTINCT submission) FROM scores "
                "WHERE reader = ? AND stage = ? AND case_number = ? AND scenario = ?",
                where,
            ).fetchone()
            if found != revision:
                raise StaleError
            (last,) = connection.execute("SELECT MAX(submission) FROM scores").fetchone()
            connection.executemany(
                "INSERT INTO scores (submission, time, reader, stage, case_number, scenario, "
                "map, question, score, seconds) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    ((last or 0) + 1, time, *where, shown, question, score, submission.seconds)
                    for (shown, question), score in submission.scores.items()
                ],
            )

    def close_session(self, reader: str, stage: Stage, session: int, time: datetime) -> None:
        """Add that a reader has finished a session."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO closings (time, reader, stage, session) VALUES (?, ?, ?, ?)",
                (_text(time), reader, stage, session),
            )

    def add_reader(self, reader: Reader, time: datetime) -> None:
        """Add a reader, or a new token of one."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO readers (time, name, role, token_sha256) VALUES (?, ?, ?, ?)",
                (_text(time), reader.name, reader.role, reader.token_sha256),
            )

    def record(self) -> Record:
        """Everything in the log."""
        with self._transaction() as connection:
            submissions = list(_submissions(connection))
            readers = connection.execute("SELECT name, role, token_sha256 FROM readers ORDER BY id")
            found = {name: Reader(name, cast("Role", role), token) for name, role, token in readers}
            closings = connection.execute(
                "SELECT reader, stage, session, time FROM closings ORDER BY id"
            )
            closed = {
                (who, cast("Stage", stage), number): datetime.fromisoformat(time)
                for who, stage, number, time in closings
            }
        latest = {(s.reader, s.task): s for s in submissions}
        revisions = dict.fromkeys(latest, 0)
        for submission in submissions:
            revisions[submission.reader, submission.task] += 1
        return Record(found, latest, revisions, closed)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One immediate transaction: others wait, and see all of it or nothing."""
        try:
            with closing(
                sqlite3.connect(self._path, timeout=_PATIENCE_S, isolation_level=None)
            ) as connection:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"cannot be used: {error}", where=str(self._path)) from error


def _submissions(connection: sqlite3.Connection) -> Iterator[Submission]:
    rows = connection.execute(
        "SELECT submission, time, reader, stage, case_number, scenario, map, question, score, "
        "seconds FROM scores ORDER BY submission, id"
    ).fetchall()
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end][0] != rows[start][0]:
            yield _submission(rows[start:end])
            start = end


def _submission(rows: Sequence[tuple[object, ...]]) -> Submission:
    _, time, reader, stage, case, scenario, _, _, _, seconds = rows[0]
    return Submission(
        reader=str(reader),
        task=Task(cast("Stage", stage), cast("int", case), str(scenario)),
        scores={(str(row[6]), str(row[7])): cast("int", row[8]) for row in rows},
        seconds=cast("float", seconds),
        time=datetime.fromisoformat(str(time)),
    )


def _text(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")
