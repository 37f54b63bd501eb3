"""A history is read on from where the last look ended."""

import json

import pytest

from iedn.errors import CheckpointError
from server.history import History


def write(path, text, mode="ab"):
    with path.open(mode) as stream:
        stream.write(text)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.jsonl"


def test_no_file_is_no_event(path):
    assert History(path).events() == []


def test_lines_that_came_since_are_added_and_no_line_is_parsed_twice(path, monkeypatch):
    parsed: list[bytes] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda line: parsed.append(line) or loads(line))
    history = History(path)
    write(path, b'{"round": 1}\n{"round": 2}\n')
    assert [e["round"] for e in history.events()] == [1, 2]
    assert [e["round"] for e in history.events()] == [1, 2]
    write(path, b'{"round": 3}\n')
    assert [e["round"] for e in history.events()] == [1, 2, 3]
    assert parsed == [b'{"round": 1}', b'{"round": 2}', b'{"round": 3}']


def test_a_line_that_is_being_written_waits(path):
    history = History(path)
    write(path, b'{"round": 1}\n{"rou')
    assert [e["round"] for e in history.events()] == [1]
    write(path, b'nd": 2}\n')
    assert [e["round"] for e in history.events()] == [1, 2]


def test_a_damaged_line_is_said_every_time(path):
    history = History(path)
    write(path, b'{"round": 1}\nnonsense\n')
    for _ in range(2):
        with pytest.raises(CheckpointError, match="damaged"):
            history.events()


def test_a_shorter_file_is_another_file(path):
    history = History(path)
    write(path, b'{"round": 1}\n{"round": 2}\n')
    history.events()
    write(path, b'{"round": 7}\n', mode="wb")
    assert [e["round"] for e in history.events()] == [7]
