"""An update of one patient gives their images away, and noise in training hides them."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.slow]

STEPS, NOISE = 60, 0.5


@pytest.fixture
def inversion(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import gradient_inversion

    return gradient_inversion


def test_noise_hides_what_an_exact_update_shows(inversion, tmp_path):
    found = inversion.report(tmp_path, [0.0, NOISE], STEPS)["correlation_by_noise_multiplier"]
    exact, noisy = found["0"], found[f"{NOISE:g}"]
    for modality in inversion.MODALITIES:
        assert abs(noisy[modality]) < exact[modality], modality
