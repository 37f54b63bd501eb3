"""A history as TensorBoard's scalars; the extra need not be installed."""

import sys

import pytest

import server.cli
from iedn.errors import ConfigError
from server.tensorboard import Scalar, export, scalars
from tests.told import troubled, write_run

# 2026-03-02T09:01:00Z; 20514 days after 1970-01-01.
ROUND_1_S = 20514 * 86400.0 + 9 * 3600 + 60


def test_points_are_those_of_the_history():
    points = list(scalars(troubled(1)))
    assert points[:4] == [
        Scalar("site-a", "validation/psnr_db", 21.0, 1, ROUND_1_S),
        Scalar("site-a", "validation/ssim_percent", 63.0, 1, ROUND_1_S),
        Scalar("site-b", "validation/psnr_db", 19.5, 1, ROUND_1_S),
        Scalar("site-b", "validation/ssim_percent", 58.5, 1, ROUND_1_S),
    ]
    # Of three updates (3, 2 and 3 kB) the last is late; scans: 10 of site-a, 20 of site-b.
    assert [(p.source, p.tag, p.value) for p in points[4:]] == [
        ("federation", "round/seconds", 31.5),
        ("federation", "round/bytes", 5000),
        ("federation", "round/accepted", 2),
        ("federation", "scans/decoder", 30),
        ("federation", "scans/encoder.ASL", 10),
        ("federation", "scans/encoder.T1WI", 30),
        ("site-a", "privacy/epsilon", 0.5),
    ]


def test_without_the_extra_the_error_says_which(tmp_path, monkeypatch, call):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    write_run(tmp_path / "run", troubled())
    out = tmp_path / "out"
    code, _, error = call(server.cli.main, "export-tensorboard", tmp_path / "run", out)
    assert code == 3
    assert '"iedn[tensorboard]"' in error
    assert not out.exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="is not empty"):
        export(troubled(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "out"
    assert export(troubled(3), out) == len(list(scalars(troubled(3))))
    assert sorted(p.name for p in out.iterdir()) == ["federation", "site-a", "site-b"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "nothing half-written is left"
    read = EventAccumulator(str(out / "site-b")).Reload().Scalars("validation/psnr_db")
    assert [(e.step, e.value) for e in read] == [(1, 19.5), (2, 20.0), (3, 20.5)]
    assert read[0].wall_time == ROUND_1_S
