"""Measured CBV: the bolus model and its area ratio."""

import numpy as np
import pytest

from simulation.phantom.dsc import (
    NUM_FRAMES,
    REPETITION_S,
    SAME_CURVE,
    VEIN_DELAY_S,
    arterial_input,
    class_curves,
    measure_cbv,
    tissue_curve,
)
from simulation.phantom.tissue import Tissue, tissue_table


class SilentNoise:
    """Stands for a generator that draws zeros."""

    def standard_normal(self, size: tuple[int, ...], dtype: type) -> np.ndarray:
        return np.zeros(size, dtype)


def measured(rng: object, **cbv: float) -> float:
    shape = (6, 6, 6)
    blood = {t: np.full(shape, cbv.get(t.name, 0.0), dtype=np.float32) for t in SAME_CURVE}
    baseline = np.full(shape, 0.4, dtype=np.float32)
    return float(measure_cbv(blood, baseline, tissue_table(), rng).mean())  # type: ignore[arg-type]


def test_recursion_is_the_convolution_with_an_exponential() -> None:
    mtt_s = 5.0
    keep = np.exp(-REPETITION_S / mtt_s)
    residue = keep ** np.arange(NUM_FRAMES)
    direct = np.convolve(arterial_input(), residue)[:NUM_FRAMES] * (1.0 - keep)
    assert tissue_curve(mtt_s) == pytest.approx(direct, abs=1e-12)


@pytest.mark.parametrize("mtt_s", [3.0, 6.0, 9.0])
@pytest.mark.parametrize("delay_s", [0.0, 1.9])
def test_area_depends_neither_on_transit_time_nor_on_delay(mtt_s: float, delay_s: float) -> None:
    area = tissue_curve(mtt_s, delay_s).sum() * REPETITION_S
    assert area == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(("tissue", "cbv"), [("GM", 4.5), ("WM", 2.2), ("RIM", 6.4)])
def test_without_noise_the_map_is_the_blood_volume(tissue: str, cbv: float) -> None:
    assert measured(SilentNoise(), **{tissue: cbv}) == pytest.approx(cbv, rel=0.01)


def test_grey_matters_signal_falls_by_about_a_third() -> None:
    curves = class_curves(tissue_table())
    fall = 1.0 - np.exp(-0.03 * 36.0 * 4.5 * curves[Tissue.GM].max())
    assert 0.3 < fall < 0.4


def test_veins_carry_the_input_later_and_unspread() -> None:
    vein, artery = class_curves(tissue_table())[Tissue.VEIN], arterial_input()
    assert vein[3:] == pytest.approx(artery[:-3])
    assert pytest.approx(3 * REPETITION_S) == VEIN_DELAY_S


def test_full_vein_is_underestimated_because_its_signal_vanishes() -> None:
    value = measured(np.random.default_rng(0), VEIN=70.0)
    assert 10.0 < value < 60.0


def test_noise_is_small_against_grey_matter() -> None:
    blood = {t: np.zeros((12, 12, 12), dtype=np.float32) for t in SAME_CURVE}
    blood[Tissue.GM] += 4.5
    baseline = np.full((12, 12, 12), 0.4, dtype=np.float32)
    cbv = measure_cbv(blood, baseline, tissue_table(), np.random.default_rng(1))
    assert float(cbv.mean()) == pytest.approx(4.5, abs=0.1)
    assert 0.05 < float(cbv.std()) < 0.5
