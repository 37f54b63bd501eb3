"""Parts of the reader study without a browser: orders, washout, decisions, log, export."""

import sqlite3
import stat
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import numpy as np
import pytest

from client.rating.enrolment import enrol
from client.rating.export import export_scores, quality_page, unfinished
from client.rating.order import is_synthetic_first, page_id, scenario_order, shuffled
from client.rating.presentation import from_log, panes, to_log
from client.rating.questions import CRITERIA
from client.rating.results import quality_results
from client.rating.score_log import ScoreLog, StaleError, Submission, Task
from client.rating.study import find_study, load_study, read_volume_bytes
from client.rating.worklist import divergent, worklist
from client.reader_results import reader_results
from iedn.errors import CohortError, ConfigError
from sites.readers import load_readers
from tests.reading_room import START, make, tokens

READERS = ("reader-1", "reader-2")
QUALITY = tuple(CRITERIA)


def submission(reader, task, scores, time=START, seconds=12.5):
    return Submission(reader, task, scores, seconds, time)


def synthetic(*scores):
    return {("synthetic", c): s for c, s in zip(QUALITY, scores, strict=True)}


def work(study, log, name, now=START):
    record = log.record()
    return worklist(study, record, record.readers[name], now)


@pytest.fixture
def quality(tmp_path):
    """A similarity study of five cases with two readers."""
    study = make(tmp_path, num_cases=5, mode="similarity")
    tokens(tmp_path)
    return study, ScoreLog(tmp_path)


@pytest.fixture
def diagnosis(tmp_path):
    """A diagnosis study of four cases, three readers, a washout of 14 days."""
    study = make(tmp_path, num_cases=4, kind="diagnosis", decision="adjudicator", washout_days=14)
    tokens(tmp_path, adjudicator=True)
    return study, ScoreLog(tmp_path)


def score_all(study, log, given, *, close=True):
    """``given``: reader -> case -> the three scores."""
    for reader, by_case in given.items():
        for case, scores in by_case.items():
            log.append(submission(reader, Task("initial", case), synthetic(*scores)), revision=0)
        if close:
            log.close_session(reader, "initial", 1, START)


def test_orders_come_from_the_seed_and_are_each_readers_own(quality):
    study, _ = quality
    cases = range(5)
    first, second = (shuffled(study, "session-1", reader, cases) for reader in READERS)
    assert sorted(first) == sorted(second) == list(cases)
    assert first != second
    assert first == shuffled(study, "session-1", "reader-1", cases)
    other = study.model_copy(update={"design": study.design.model_copy(update={"seed": 8})})
    assert first != shuffled(other, "session-1", "reader-1", cases)


def test_half_of_the_cases_have_the_synthetic_map_first_differently_by_reader(tmp_path):
    study = make(tmp_path, num_cases=8)
    sides = {r: [is_synthetic_first(study, "initial", r, n) for n in range(8)] for r in READERS}
    assert [sum(of_reader) for of_reader in sides.values()] == [4, 4]
    assert sides["reader-1"] != sides["reader-2"]


def test_scenarios_are_crossed_over_and_balanced(diagnosis):
    study, _ = diagnosis
    orders = [scenario_order(study, "reader-1", n) for n in range(4)]
    assert sorted(orders) == [("MRI+ASL", "MRI+sCBV")] * 2 + [("MRI+sCBV", "MRI+ASL")] * 2


def test_names_on_the_page_tell_nothing_and_differ_by_reader(quality):
    study, _ = quality
    ids = {page_id(study, reader, Task("initial", n)) for reader in READERS for n in range(5)}
    assert len(ids) == 10
    assert not any("sub" in name for name in ids)


def test_both_maps_are_files_of_one_kind_and_size(tmp_path):
    study = make(tmp_path, num_cases=1)
    series = study.cases[0].series
    contents = [read_volume_bytes(tmp_path, series[name]) for name in ("CBV", "sCBV")]
    assert len(contents[0]) == len(contents[1])
    assert contents[0][:352] == contents[1][:352], "the headers are the same bytes"
    assert series["CBV"].window == series["sCBV"].window == (0.0, 4.0)
    assert not any(name in str(s.file) for name, s in series.items())
    (tmp_path / "volumes" / series["CBV"].file).write_bytes(contents[1])
    with pytest.raises(ConfigError, match="not the volume"):
        read_volume_bytes(tmp_path, series["CBV"])


@pytest.mark.parametrize("number", range(3))
def test_blind_answers_are_logged_by_what_the_map_is(tmp_path, number):
    study, task = make(tmp_path), Task("initial", number)
    answers = {f"A.{c}": 3 for c in QUALITY} | {f"B.{c}": 1 for c in QUALITY}
    scores = to_log(study, task, "reader-1", answers)
    a_is_synthetic = is_synthetic_first(study, "initial", "reader-1", number)
    assert scores["synthetic", "degree"] == (3 if a_is_synthetic else 1)
    assert from_log(study, task, "reader-1", submission("reader-1", task, scores)) == answers
    shown = panes(study, task, "reader-1")
    made = study.cases[number].series["sCBV"]
    assert shown[0 if a_is_synthetic else 1].series == made
    assert [p.title for p in shown[:2]] == ["Map A", "Map B"]


def test_the_log_keeps_corrections_as_new_rows(quality, tmp_path):
    _, log = quality
    task = Task("initial", 2)
    log.append(submission("reader-1", task, synthetic(3, 3, 3)), revision=0)
    log.append(submission("reader-1", task, synthetic(3, 2, 3)), revision=1)
    record = log.record()
    assert record.latest["reader-1", task].scores == synthetic(3, 2, 3)
    assert record.revisions["reader-1", task] == 2
    with sqlite3.connect(tmp_path / "scores.sqlite") as connection:
        rows = connection.execute("SELECT score FROM scores ORDER BY id").fetchall()
    assert [score for (score,) in rows] == [3, 3, 3, 3, 2, 3]


@pytest.mark.parametrize("table", ["scores", "closings", "readers"])
def test_nothing_in_the_log_can_be_changed_or_removed(quality, tmp_path, table):
    study, log = quality
    score_all(study, log, {"reader-1": {0: (3, 3, 3)}})
    before = log.record()
    connection = sqlite3.connect(tmp_path / "scores.sqlite")
    for statement in (
        f"UPDATE {table} SET time = 'x'",  # noqa: S608  (a name of this test)
        f"DELETE FROM {table}",  # noqa: S608
        f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}",  # noqa: S608
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()
    assert log.record() == before
    assert stat.S_IMODE((tmp_path / "scores.sqlite").stat().st_mode) == 0o600


def test_a_score_given_in_another_window_is_not_overwritten(quality):
    _, log = quality
    task = Task("initial", 0)
    log.append(submission("reader-1", task, synthetic(3, 3, 3)), revision=0)
    with pytest.raises(StaleError):
        log.append(submission("reader-1", task, synthetic(0, 0, 0)), revision=0)
    assert log.record().latest["reader-1", task].scores == synthetic(3, 3, 3)


def test_a_damaged_log_is_said(tmp_path):
    (tmp_path / "scores.sqlite").write_bytes(b"not a database at all, but long enough" * 30)
    with pytest.raises(ConfigError, match=r"scores.sqlite.*cannot be used"):
        ScoreLog(tmp_path)


AGREE = dict.fromkeys(range(5), (3, 3, 3))


def test_divergent_scores_are_discussed_once_both_have_finished(quality):
    study, log = quality
    score_all(study, log, {"reader-1": AGREE})
    assert "reader-2" in work(study, log, "reader-1").notice
    assert len(work(study, log, "reader-2").tasks) == 5
    score_all(study, log, {"reader-2": AGREE | {1: (3, 2, 3), 4: (2, 3, 3)}})
    for reader in READERS:
        found = work(study, log, reader)
        assert (found.stage, found.who) == ("consensus", "reader-1+reader-2")
        assert sorted(task.case for task in found.tasks) == [1, 4]
    assert unfinished(study, log.record()) == ["2 divergent readings are not decided"]


def test_readers_who_agree_have_nothing_to_decide(quality):
    study, log = quality
    score_all(study, log, {"reader-1": AGREE, "reader-2": AGREE})
    assert "nothing to decide" in work(study, log, "reader-1").notice
    assert unfinished(study, log.record()) == []


def test_an_adjudicator_decides_where_the_study_says_so(tmp_path):
    study = make(tmp_path, num_cases=5, mode="similarity", decision="adjudicator")
    tokens(tmp_path, adjudicator=True)
    log = ScoreLog(tmp_path)
    assert "both readers have finished" in work(study, log, "reader-3").notice
    score_all(study, log, {"reader-1": AGREE, "reader-2": AGREE | {2: (3, 3, 1)}})
    assert [t.case for t in work(study, log, "reader-3").tasks] == [2]
    assert work(study, log, "reader-1").tasks == ()


# Four cases; calls of reader-1 and reader-2 differ in case 2 under both, in case 3 under MRI+ASL.
SCORES = {
    "MRI+ASL": {"reader-1": (4, 1, 3, 2), "reader-2": (4, 2, 2, 3)},
    "MRI+sCBV": {"reader-1": (4, 1, 3, 1), "reader-2": (3, 1, 2, 2)},
}


def read_session(study, log, reader, now):
    """Answers every task of the reader's present session and finishes it."""
    found = work(study, log, reader, now)
    for task in found.tasks:
        score = {("", "diagnosis"): SCORES[task.scenario][reader][task.case]}
        log.append(submission(reader, task, score, now), revision=0)
    log.close_session(found.who, found.stage, found.session, now)
    return found


def test_washout_keeps_the_second_session_shut(diagnosis):
    study, log = diagnosis
    first = read_session(study, log, "reader-1", START)
    assert {t.case for t in first.tasks} == {0, 1, 2, 3}
    early = START + timedelta(days=14) - timedelta(seconds=1)
    shut = work(study, log, "reader-1", early)
    assert shut.tasks == ()
    assert "second session opens on 2026-03-16 at 09:00 UTC, 14 days after" in shut.notice
    second = work(study, log, "reader-1", early + timedelta(seconds=1))
    assert second.session == 2
    seen = {(t.case, t.scenario) for t in (*first.tasks, *second.tasks)}
    assert seen == {(n, s) for n in range(4) for s in SCORES}


def test_a_correction_begins_the_washout_anew(diagnosis):
    study, log = diagnosis
    found = work(study, log, "reader-1")
    later = START + timedelta(days=3)
    for task in found.tasks:
        log.append(submission("reader-1", task, {("", "diagnosis"): 4}), revision=0)
    corrected = submission("reader-1", found.tasks[0], {("", "diagnosis"): 3}, later)
    log.append(corrected, revision=1)
    log.close_session("reader-1", "initial", 1, later)
    assert work(study, log, "reader-1", later).opens == later + timedelta(days=14)


def whole_diagnosis(study, log):
    second = START + timedelta(days=14)
    for now in (START, second):
        for reader in READERS:
            read_session(study, log, reader, now)
    sessions = []
    for now in (second, second + timedelta(days=14)):
        found = work(study, log, "reader-3", now)
        sessions.append(found.tasks)
        for task in found.tasks:
            log.append(submission("reader-3", task, {("", "diagnosis"): 4}, now), revision=0)
        log.close_session("reader-3", "adjudication", found.session, now)
    return sessions


def test_the_third_reader_decides_calls_that_differ_also_after_a_washout(diagnosis):
    study, log = diagnosis
    one, two = whole_diagnosis(study, log)
    assert sorted(t.case for t in one) == [2, 3]
    assert [t.case for t in two] == [2], "the same case under the other scenario, later"
    assert {t.scenario for t in (*one, *two) if t.case == 2} == set(SCORES)
    assert len(divergent(study, log.record())) == 3


def test_readers_csv_is_what_the_statistics_read(diagnosis, tmp_path):
    study, log = diagnosis
    with pytest.raises(CohortError, match="reader-1 has not finished"):
        export_scores(study, log.record(), tmp_path)
    whole_diagnosis(study, log)
    path = export_scores(study, log.record(), tmp_path)
    keys = [case.key for case in study.cases]
    found = load_readers(path, {key.split("/")[0]: [key] for key in keys})
    result = reader_results(found, dict(zip(keys, (True, False, True, False), strict=True)))
    asl = result.scenarios["MRI+ASL"]
    assert asl.num_disagreed == 2
    # Calls R T R T against R T T R: half agree, half by chance.
    assert asl.kappa.value == pytest.approx(0.0)
    # (4, 4), (1, 2), (3, 2), (2, 3): mean squares of rows 17/8, of readers 1/8, of the rest 11/24.
    rows, readers, rest = 17 / 8, 1 / 8, 11 / 24
    expected = (rows - rest) / (rows + rest + 2 * (readers - rest) / 4)
    assert asl.icc.value == pytest.approx(expected)
    # Decided: R T R R against recurrences 0 and 2: both found, one of two cleared.
    assert (asl.sensitivity.value, asl.specificity.value) == (1.0, 0.5)
    assert path.read_text().splitlines()[1].endswith(",12.5,initial")


def test_export_replaces_only_its_own_file(diagnosis, tmp_path):
    study, log = diagnosis
    whole_diagnosis(study, log)
    path = tmp_path / "readers.csv"
    path.write_text("made by hand\n")
    with pytest.raises(ConfigError, match="--force"):
        export_scores(study, log.record(), tmp_path)
    export_scores(study, log.record(), tmp_path, force=True)
    assert export_scores(study, log.record(), tmp_path) == path


def test_quality_numbers_equal_a_hand_computation(quality, tmp_path):
    """Five cases; degree scored 3 3 2 1 3 by the one, 3 2 2 1 3 by the other; border always 3."""
    study, log = quality
    degree = {"reader-1": (3, 3, 2, 1, 3), "reader-2": (3, 2, 2, 1, 3)}
    given = {r: {n: (s, s, 3) for n, s in enumerate(scores)} for r, scores in degree.items()}
    score_all(study, log, given)
    (task,) = work(study, log, "reader-1").tasks
    decided = submission("reader-1+reader-2", task, synthetic(3, 3, 3))
    log.append(decided, revision=0)
    results = {r.criterion: r for r in quality_results(study, log.record())}
    found = results["degree"]
    # Final scores 3 3 2 1 3.
    assert found.mean == pytest.approx(12 / 5)
    assert found.shares == pytest.approx((0, 1 / 5, 1 / 5, 3 / 5))
    assert found.num_divergent == 1
    # Four cases agree (1), one is a point apart: variance 1/2, 1 - 0.5 / 1.25 = 0.6.
    assert found.r_wg.value == pytest.approx((4 * 1 + 0.6) / 5)
    # Rows' means 3 2.5 2 1 3 about 2.3: mean squares 2 * 2.8 / 4; readers 5 * 0.02 / 1; rest 0.1.
    rows, readers, rest = 1.4, 0.1, 0.1
    expected = (rows - rest) / (rows + rest + 2 * (readers - rest) / 5)
    assert found.icc.value == pytest.approx(expected)
    # Quadratic disagreement: seen 1/5 of a point squared; by chance, mean of (a - b)^2 over all
    # pairs of the two readers' scores (3 3 2 1 3 and 3 2 2 1 3): 31/25.
    chance = np.subtract.outer(degree["reader-1"], degree["reader-2"]) ** 2
    assert chance.sum() == 31
    assert found.kappa.value == pytest.approx(1 - (1 / 5) / (31 / 25))
    border = results["border"]
    assert (border.icc, border.kappa, border.r_wg.value) == (None, None, 1.0)
    page = quality_page(list(results.values()))
    assert "| synthetic | Overall perfusion degree of the lesions | 5 | 2.40 |" in page
    assert "not defined" in page
    path = export_scores(study, log.record(), tmp_path / "out")
    lines = path.read_text().splitlines()
    assert lines[0] == "case,reader,map,criterion,score,time,stage"
    assert len(lines) == 1 + 3 * (5 * 2 + 1)
    assert "reader-1+reader-2,synthetic,degree,3,12.5,consensus" in path.read_text()


def test_readers_are_two_and_one_with_made_up_names(quality, tmp_path):
    def add(name, role="reader", *, renew=False):
        return enrol(tmp_path, name, role, renew=renew, now=START)

    with pytest.raises(ConfigError, match="too many"):
        add("reader-3")
    with pytest.raises(ConfigError, match="decide in a discussion"):
        add("reader-3", "adjudicator")
    with pytest.raises(ConfigError, match="is there already"):
        add("reader-1")
    with pytest.raises(ConfigError, match="made-up name"):
        add("reader 4")
    with pytest.raises(ConfigError, match="no reader of this name"):
        add("reader-9", renew=True)
    _, log = quality
    old = log.record().readers["reader-1"]
    add("reader-1", renew=True)
    new = log.record().readers["reader-1"]
    assert new == replace(old, token_sha256=new.token_sha256)
    assert new.token_sha256 != old.token_sha256


def test_a_study_is_found_by_name_or_because_it_is_the_only_one(tmp_path):
    with pytest.raises(ConfigError, match="rate init"):
        find_study(tmp_path, None)
    make(tmp_path / "readers" / "one", num_cases=1)
    assert find_study(tmp_path, None).name == "one"
    make(tmp_path / "readers" / "two", num_cases=1)
    with pytest.raises(ConfigError, match="one, two"):
        find_study(tmp_path, None)
    assert find_study(tmp_path, "two") == tmp_path / "readers" / "two"


def test_a_study_changed_by_hand_is_refused_and_one_is_not_overwritten(tmp_path):
    make(tmp_path, num_cases=1)
    with pytest.raises(ConfigError, match="there is a study already"):
        make(tmp_path, num_cases=1)
    path = tmp_path / "study.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text(path.read_text().replace('"blind"', '"open"'))
    with pytest.raises(ConfigError, match=r"study.json: design.mode"):
        load_study(tmp_path)


def test_presentation_orders_are_not_the_manifests(tmp_path):
    study = make(tmp_path, num_cases=12)
    order = shuffled(study, "session-1", "reader-1", range(12))
    assert sum(b - a == 1 for a, b in pairwise(order)) < 6
