"""Model files survive being killed, and damaged ones are refused."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from iedn.checkpoint import load_checkpoint, save_checkpoint
from iedn.config import NetworkConfig
from iedn.errors import CheckpointError
from iedn.files import (
    append_line,
    atomic_copy,
    atomic_write_bytes,
    atomic_write_tensors,
    cut_torn_line,
)
from iedn.modalities import Modality
from iedn.parameters import state_hash

CONFIG = NetworkConfig(base_channels=2, depth=1, modalities=(Modality.ASL,))
TENSORS = {
    "decoder.a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "decoder.scalar": np.array(1.5, np.float32),
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "round-0007.safetensors"
    save_checkpoint(path, TENSORS, CONFIG, metadata={"round": "7"})
    return path


def test_a_checkpoint_comes_back_whole(saved):
    checkpoint = load_checkpoint(saved)
    assert checkpoint.config == CONFIG
    assert checkpoint.metadata == {"round": "7"}
    assert checkpoint.model_hash == state_hash(TENSORS) == state_hash(checkpoint.tensors)
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_tensors_that_are_not_contiguous_are_saved_by_value(tmp_path):
    turned = {"decoder.a": TENSORS["decoder.a"].T}
    save_checkpoint(tmp_path / "m.safetensors", turned, CONFIG)
    loaded = load_checkpoint(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(loaded.tensors["decoder.a"], turned["decoder.a"])


def test_missing_and_damaged_files_are_refused(saved, tmp_path):
    with pytest.raises(CheckpointError, match="no such model file"):
        load_checkpoint(tmp_path / "absent.safetensors")
    content = saved.read_bytes()
    saved.write_bytes(content[:-5])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(saved)
    flipped = bytearray(content)
    flipped[-1] ^= 1
    saved.write_bytes(bytes(flipped))
    with pytest.raises(CheckpointError, match="damaged or edited") as caught:
        load_checkpoint(saved)
    assert str(saved) in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("schema_version", "2", "schema version '2'"),
        ("model_hash", "0" * 64, "damaged or edited"),
        ("network", "{}x", "network configuration"),
        ("network", '{"base_channels": 0}', "base_channels"),
    ],
)
def test_foreign_metadata_is_refused(saved, key, value, words):
    metadata = {
        "schema_version": "1",
        "network": CONFIG.model_dump_json(),
        "model_hash": state_hash(TENSORS),
        key: value,
    }
    save_file(TENSORS, saved, metadata=metadata)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(saved)
    save_file(load_file(saved), saved)
    with pytest.raises(CheckpointError, match="schema version None"):
        load_checkpoint(saved)


def test_metadata_cannot_overwrite_what_the_module_writes(tmp_path):
    with pytest.raises(ValueError, match="model_hash"):
        save_checkpoint(tmp_path / "m", TENSORS, CONFIG, metadata={"model_hash": "x"})
    assert list(tmp_path.iterdir()) == []


def test_a_failing_write_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        atomic_write_bytes(saved, b"new")
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_file_and_folder_are_flushed_and_the_rename_comes_between(tmp_path, monkeypatch):
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")  # noqa: PTH112
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    atomic_write_bytes(tmp_path / "x", b"1")
    assert steps == ["file", "rename", "folder"]
    assert (tmp_path / "x").read_bytes() == b"1"


def test_lines_are_appended_even_after_half_a_line(tmp_path):
    path = tmp_path / "history.jsonl"
    append_line(path, '{"round": 1}')
    append_line(path, '{"round": 2}')
    with path.open("ab") as stream:
        stream.write(b'{"rou')
    append_line(path, '{"round": 3}')
    assert path.read_text().split("\n") == [
        '{"round": 1}',
        '{"round": 2}',
        '{"rou',
        '{"round": 3}',
        "",
    ]
    with pytest.raises(ValueError, match="line feed"):
        append_line(path, "a\nb")


def test_reading_model_files_needs_no_torch():
    code = "import sys, iedn.checkpoint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("content", "left"),
    [(b"a\nb\n", b"a\nb\n"), (b"a\nb", b"a\n"), (b"half", b""), (b"", b""), (b"a\n\n", b"a\n\n")],
)
def test_only_a_torn_last_line_is_cut(tmp_path, content, left):
    path = tmp_path / "history.jsonl"
    path.write_bytes(content)
    cut_torn_line(path)
    assert path.read_bytes() == left
    assert [p.name for p in tmp_path.iterdir()] == ["history.jsonl"]


def test_there_is_nothing_to_cut_where_there_is_no_file(tmp_path):
    cut_torn_line(tmp_path / "history.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_need_not_last_is_not_flushed_but_replaced_whole(saved, monkeypatch):
    def fail(descriptor: int) -> None:
        raise AssertionError

    monkeypatch.setattr(os, "fsync", fail)
    atomic_write_bytes(saved, b"new", durable=False)
    assert saved.read_bytes() == b"new"
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_tensors_are_written_without_a_copy_and_with_the_usual_permissions(tmp_path):
    tensors = {"w": np.arange(2_000_000, dtype=np.float32)}
    tracemalloc.start()
    atomic_write_tensors(tmp_path / "m", tensors)
    _, top = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert top < tensors["w"].nbytes / 4
    (tmp_path / "plain").touch()
    assert (tmp_path / "m").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (load_file(tmp_path / "m")["w"] == tensors["w"]).all()


def test_tensors_in_another_layout_are_written_in_order(tmp_path):
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    atomic_write_tensors(tmp_path / "m", {"t": grid.T, "f": np.asfortranarray(grid)})
    found = load_file(tmp_path / "m")
    assert (found["t"] == grid.T).all()
    assert (found["f"] == grid).all()


def test_a_copy_replaces_its_target_and_is_another_file(saved, tmp_path):
    target = tmp_path / "best"
    target.write_bytes(b"old")
    atomic_copy(saved, target)
    assert target.read_bytes() == saved.read_bytes()
    assert target.stat().st_ino != saved.stat().st_ino


def test_tensors_that_cannot_be_written_are_an_error_of_the_system(saved, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    before = saved.read_bytes()
    with pytest.raises(OSError, match="No space"):
        atomic_write_tensors(saved, TENSORS)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
