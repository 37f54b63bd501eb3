"""One thread a test process (two that compete for two cores spin more than they compute), and
what several tests need: the commands as a user calls them, and modules that are run by path."""

import csv
import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from iedn import console
from sites.cohort import REQUIRED_COLUMNS

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With several processes, a file that shares costly processes or cohorts stays in one.

    But kills, which take half of the time of the system tests: each process has its own federation.
    ``--dist loadgroup`` would be for this, but pytest 9.2 does not see the groups of xdist 3.8.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFixtures(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::", 1)[0]
            is_shared = file.startswith(("tests/federation/", "tests/system/"))
            return file if is_shared and file != "tests/system/test_kills.py" else nodeid

    return ByFixtures(config, log)


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a command line's ``main`` with words; gives exit code, stdout and stderr."""

    def run(main, *words):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
        monkeypatch.setattr(console, "_log_to_stderr", lambda: None)
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    return run


class SeededEntropy:
    """Randomness of private training that repeats; the product has none.

    ``names`` are the patients' own: a cohort with one fewer gives all others what they had.
    """

    def __init__(self, seed, names=None):
        self.seed, self.names, self.steps = seed, names, 0

    def _generator(self, *purpose):
        return torch.Generator().manual_seed(hash((self.seed, self.steps, *purpose)) % 2**31)

    def _name(self, patient):
        return patient if self.names is None else self.names[patient]

    def draw(self, patients, rate):
        self.steps += 1
        chances = [
            float(torch.rand((), generator=self._generator(1, self._name(p))))
            for p in range(patients)
        ]
        return [patient for patient, chance in enumerate(chances) if chance < rate]

    def noise(self, device):
        return self._generator(2)

    def augmentation(self, patient):
        return self._generator(3, self._name(patient))


@pytest.fixture(scope="session")
def seeded_entropy():
    """The class of a seeded source of randomness for private training."""
    return SeededEntropy


@pytest.fixture(scope="session")
def bad():
    """The builders of a small site and of its bad files."""
    return _module(ROOT / "tests" / "unit" / "test_bad_inputs.py")


@pytest.fixture(scope="session")
def planted():
    """The mistakes in private training that tests plant, to see them found."""
    return _module(ROOT / "tests" / "unit" / "test_canaries.py")


@pytest.fixture(scope="session")
def mutations():
    """The script that damages files and manifests at random."""
    return _module(ROOT / "benchmarks" / "mutations.py")


@pytest.fixture(scope="session")
def links():
    """The script that runs federations behind bad links."""
    return _module(ROOT / "benchmarks" / "links.py")


def _module(path):
    spec = importlib.util.spec_from_file_location(f"_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def manifest_of(tmp_path):
    """Writes rows as a manifest, absent cells empty, and gives its path."""

    def written(rows):
        path = tmp_path / "manifest.csv"
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, REQUIRED_COLUMNS, restval="")
            writer.writeheader()
            writer.writerows(rows)
        return path

    return written
