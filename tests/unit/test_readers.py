"""``readers.csv``: complete reader studies are read, everything else is refused as a whole."""

import pytest

from client.reader_results import reader_results
from iedn.errors import CohortError
from sites.readers import load_readers

HEADER = "case,reader,scenario,score_or_call,probability,time,stage"
CASES = {"sub-0001": ["sub-0001/ses-01"], "sub-0002": ["sub-0002/ses-01", "sub-0002/ses-02"]}
KEYS = ["sub-0001", "sub-0002/ses-01", "sub-0002/ses-02"]


def rows(scores=((4, 4), (1, 2), (3, 2)), decided=(None, None, 2), scenario="MRI+ASL"):
    lines = []
    for key, pair, third in zip(KEYS, scores, decided, strict=True):
        readings = [("reader-1", pair[0], "initial"), ("reader-2", pair[1], "initial")]
        if third is not None:
            readings.append(("reader-3", third, "adjudication"))
        lines += [f"{key},{who},{scenario},{score},,61,{stage}" for who, score, stage in readings]
    return lines


def agreeing(scenario="MRI+sCBV"):
    return rows(((4, 3), (2, 1), (1, 2)), (None,) * 3, scenario)


def write(folder, lines, header=HEADER):
    path = folder / "readers.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_a_complete_study_keeps_both_readings_and_takes_the_decision(tmp_path):
    study = load_readers(write(tmp_path, [*rows(), *agreeing()]), CASES)
    assert study.readers == ("reader-1", "reader-2")
    asl = study.judged["MRI+ASL"]
    assert [j.case for j in asl] == [key for keys in CASES.values() for key in keys]
    assert [j.call for j in asl] == ["recurrence", "treatment_response", "treatment_response"]
    assert [j.value for j in asl] == [4.0, 1.5, 2.0]
    assert [r.score for r in asl[2].first] == [3, 2]
    assert asl[2].adjudication.reader == "reader-3"


def replaced(lines, number, text):
    return [text if n == number else line for n, line in enumerate(lines)]


GOOD = [*rows(), *agreeing()]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*GOOD, "sub-0001,reader-4,MRI+ASL,4,,61,initial"], r"'reader-4'\]. Allowed: exactly two"),
        ([*GOOD[:6], *GOOD[7:]], "nobody decided"),
        ([*GOOD, "sub-0001,reader-3,MRI+ASL,4,,9,adjudication"], "although the readers agree"),
        (replaced(GOOD, 6, "sub-0002/ses-02,reader-1,MRI+ASL,2,,9,adjudication"), "of their own"),
        (GOOD[:-1], "sub-0002/ses-02, MRI.sCBV: no first reading by reader-2"),
        (replaced(GOOD, 0, "sub-0001,reader-1,MRI+ASL,5,,61,initial"), "line 2.*'5'.*1, 2, 3, 4"),
        (replaced(GOOD, 0, "sub-0001,reader-1,MRI+ASL,recurence,,61,initial"), "'recurence'"),
        (replaced(GOOD, 0, "sub-0001,reader-1,MRI+ASL,4,1.2,61,initial"), "'1.2'.*0 to 1"),
        (replaced(GOOD, 0, "sub-0001,reader-1,MRI+ASL,4,often,61,initial"), "'often'"),
        (replaced(GOOD, 0, "sub-0009,reader-1,MRI+ASL,4,,61,initial"), "'sub-0009'"),
        (replaced(GOOD, 0, "sub-0002,reader-1,MRI+ASL,4,,61,initial"), "'sub-0002'"),
        (replaced(GOOD, 0, "sub-0001,reader-1,MRI,4,,61,initial"), r"'MRI'.*MRI\+ASL, MRI\+sCBV"),
        (replaced(GOOD, 0, "sub-0001,reader-1,MRI+ASL,4,,61,final"), "'final'"),
        ([*GOOD, GOOD[0]], "judged it 2 times"),
        (replaced(GOOD, 0, "sub-0001,reader-1,MRI+ASL,4,.9,61,initial"), "the same in all"),
        (replaced(GOOD, 0, "sub-0001,reader-1,MRI+ASL,4"), "line 2 has 4 cells"),
    ],
)
def test_a_wrong_study_is_refused_with_line_value_and_what_is_allowed(tmp_path, lines, message):
    with pytest.raises(CohortError, match=message) as refused:
        load_readers(write(tmp_path, lines), CASES)
    assert "readers.csv" in str(refused.value)
    assert refused.value.exit_code == 4


def test_wrong_columns_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(CohortError, match="Allowed: case, reader"):
        load_readers(write(tmp_path, GOOD, HEADER.replace("stage", "phase")), CASES)
    with pytest.raises(CohortError, match="cannot be read"):
        load_readers(tmp_path / "none.csv", CASES)


def test_accuracy_is_the_consensus_and_agreement_the_first_readings(tmp_path):
    study = load_readers(write(tmp_path, [*rows(), *agreeing()]), CASES)
    outcomes = {"sub-0001/ses-01": True, "sub-0002/ses-01": False, "sub-0002/ses-02": True}
    found = reader_results(study, outcomes)
    asl = found.scenarios["MRI+ASL"]
    # Consensus values 4 and 2 of recurrences against 1.5: both above. Calls: one of two found.
    assert (asl.auc.value, asl.sensitivity.value, asl.specificity.value) == (1.0, 0.5, 1.0)
    assert asl.num_disagreed == 1
    # Calls R, T, R against R, T, T: 2/3 agree, 4/9 by chance.
    assert asl.kappa.value == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
    # Scores (4, 4), (1, 2), (3, 2): mean squares of rows 19/6, columns 0, rest 1/2.
    assert asl.icc.value == pytest.approx((19 / 6 - 1 / 2) / (19 / 6 + 1 / 2 - 2 * (1 / 2) / 3))
    assert found.scenarios["MRI+sCBV"].num_disagreed == 0
