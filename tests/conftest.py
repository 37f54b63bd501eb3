"""One thread a test process: two that compete for two cores spin more than they compute."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from iedn import console

torch.set_num_threads(1)


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a command's entry point with words; gives exit code, stdout and stderr."""

    def run(main, *words):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
        monkeypatch.setattr(console, "_log_to_stderr", lambda: None)
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    return run
