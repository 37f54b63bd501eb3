"""Scans prepared in processes: the same bits, and a process that dies costs one scan at most.

The processes are real and start afresh, which takes seconds: few tests, few scans.
"""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from iedn.config import GridConfig
from iedn.errors import IednError
from sites import parallel, preparation
from sites.config import SiteConfig, default_workers, load_site_config
from sites.dataset import PreparedCohort, prepare_cohort
from sites.parallel import map_in_processes

GRID = GridConfig(rows=16, columns=16, spacing_mm=10.0)
HEADER = "patient_id,scan_id,T1WI,T2WI,FLAIR,ADC,T1_C,ASL,CBV,brain_mask,label,split,exclude_reason"
AFFINE = np.array([[-8.0, 0, 0, 60], [0, 8.0, 0, -60], [0, 0, 6.0, -9], [0, 0, 0, 1]])
SHAPE = (16, 16, 4)
SCANS = 9
KILLER = 4


def make_site(folder: Path, scans: int = SCANS) -> SiteConfig:
    rng, rows = np.random.default_rng(5), [HEADER]
    x, y, _ = np.indices(SHAPE)
    brain = (((x - 7.5) ** 2 + (y - 7.5) ** 2) < 36).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(brain, AFFINE), folder / "mask.nii.gz")
    for n in range(scans):
        for name in ("t1", "cbv"):
            values = (brain * rng.uniform(50, 150, SHAPE)).astype(np.float32)
            nibabel.save(nibabel.Nifti1Image(values, AFFINE), folder / f"{name}-{n}.nii.gz")
        rows.append(f"sub-{n:04d},ses-01,t1-{n}.nii.gz,,,,,,cbv-{n}.nii.gz,mask.nii.gz,,,")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    (folder / "site.toml").write_text('name="a"\nmanifest="manifest.csv"\nworkers=2\n')
    return load_site_config(folder / "site.toml")


def cached(config: SiteConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in config.cache.glob("*.safetensors")}


def codes(cohort: PreparedCohort) -> list[tuple[str, str]]:
    return [(q.code, q.scan) for q in cohort.quarantined]


def test_processes_write_the_same_bits_as_one_thread(tmp_path):
    config = make_site(tmp_path)
    broken = tmp_path / "cbv-2.nii.gz"
    broken.write_bytes(broken.read_bytes()[:200])
    seen = []
    many = prepare_cohort(config, GRID, progress=lambda *done: seen.append(done), workers=2)
    in_processes = cached(config)
    one = prepare_cohort(config.model_copy(update={"cache": tmp_path / "other"}), GRID)
    assert seen == [(n, SCANS) for n in range(1, SCANS + 1)]
    assert in_processes == cached(config.model_copy(update={"cache": tmp_path / "other"}))
    assert len(in_processes) == SCANS
    assert codes(many) == codes(one) == [("E101", "sub-0002/ses-01"), ("E403", "sub-0002/ses-01")]
    assert [r.key for r in many.records] == [r.key for r in one.records]
    for n in range(SCANS - 1):
        torch.testing.assert_close(many.all[n].images, one.all[n].images, rtol=0, atol=0)


def test_an_item_that_kills_its_process_is_tried_alone_and_given_up(tmp_path):
    log = tmp_path / "log"

    def expression(n: int) -> str:
        """Evaluated by a worker, which therefore imports nothing of ours but the pool."""
        end = "__import__('os').kill(__import__('os').getpid(), 9)" if n == KILLER else 10 * n
        return f"open({str(log)!r}, 'a').write('{n} ') and {end}"

    items = [expression(n) for n in range(7)]
    results = dict(map_in_processes(eval, items, workers=2))
    assert results == {n: None if n == KILLER else 10 * n for n in range(7)}
    tried = log.read_text().split()
    assert tried.count(str(KILLER)) == 2
    # Only the one that was in hand beside it may have been repeated.
    assert len(tried) <= 7 + 2


def test_a_scan_that_kills_its_process_is_quarantined_and_the_rest_prepared(tmp_path, monkeypatch):
    config, repeated = make_site(tmp_path), []

    def dying(work, items, *, workers):
        repeated.append((len(items), workers))
        for index, item in enumerate(items):
            yield index, None if index == KILLER else work(item)

    monkeypatch.setattr(preparation, "map_in_processes", dying)
    cohort = prepare_cohort(config, GRID, workers=2)
    assert codes(cohort) == [("E111", f"sub-{KILLER:04d}/ses-01")]
    assert len(cohort.records) == SCANS - 1
    # The next start only tries what is missing: one scan, for which no process is started.
    assert prepare_cohort(config, GRID, workers=2).quarantined == ()
    assert repeated == [(SCANS, 2)]


@pytest.mark.parametrize(("scans", "workers"), [(3, 2), (SCANS, 1)])
def test_a_small_cohort_or_one_worker_starts_no_process(tmp_path, monkeypatch, scans, workers):
    def refuse(*_, **__):
        raise AssertionError("processes were started")

    monkeypatch.setattr(preparation, "map_in_processes", refuse)
    assert len(prepare_cohort(make_site(tmp_path, scans), GRID, workers=workers).records) == scans


def test_a_prepared_cohort_starts_no_process(tmp_path, monkeypatch):
    config = make_site(tmp_path)
    first = prepare_cohort(config, GRID)
    monkeypatch.setattr(preparation, "map_in_processes", None)
    monkeypatch.setattr(preparation, "prepare_scan", None)
    second = prepare_cohort(config, GRID, workers=2)
    assert [e.key for e in second.records] == [e.key for e in first.records]


def test_what_the_work_raises_comes_through():
    with pytest.raises(ZeroDivisionError):
        list(map_in_processes(partial(divmod, 1), [0], workers=1))


def test_where_no_process_can_be_started_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr(parallel, "_begin", partial(os._exit, 3))
    with pytest.raises(IednError, match="workers = 1"):
        list(map_in_processes(abs, [1, 2], workers=2))


SCRIPT = """
import sys, time
from pathlib import Path
from sites.parallel import map_in_processes

def slow(item):
    Path(sys.argv[1], f"begun-{item}").touch()
    time.sleep(1.5)
    Path(sys.argv[1], f"done-{item}").touch()
    return item

if __name__ == "__main__":
    for index, _ in map_in_processes(slow, range(40), workers=2):
        print(index, flush=True)
"""


@pytest.fixture
def running(tmp_path):
    """A process group that prepares 40 slow items, two of them begun."""
    script = tmp_path / "work.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("begun-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    yield process, tmp_path
    process.kill()
    process.communicate()


def wait_until_alone(group: int) -> bool:
    """Whether the process group ends within 20 s."""
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_an_interrupt_ends_after_what_is_in_hand(running):
    process, folder = running
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal: everybody gets it
    _, error = process.communicate(timeout=30)
    assert error.decode().strip().endswith("KeyboardInterrupt")
    assert error.count(b"Traceback") == 1, "a worker has complained too"
    begun, done = ({p.name.split("-")[1] for p in folder.glob(f"{w}-*")} for w in ("begun", "done"))
    assert begun == done
    assert len(done) < 10
    assert wait_until_alone(process.pid)


def test_workers_end_with_a_killed_parent(running):
    process, folder = running
    process.kill()
    process.wait()
    assert wait_until_alone(process.pid)
    assert len(list(folder.glob("begun-*"))) < 10


def test_default_is_bounded_by_processors_and_memory(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 7 * 2**30 // 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    assert default_workers() == 3  # 7 GiB
    sizes["SC_PHYS_PAGES"] *= 100
    assert default_workers() == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5})
    assert default_workers() == 2
    sizes["SC_PHYS_PAGES"] = 1
    assert default_workers() == 1
