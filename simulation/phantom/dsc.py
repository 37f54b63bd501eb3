"""Measured CBV: a dynamic susceptibility contrast scan and its area ratio.

Each class passes the bolus on with an exponential residue of its mean transit time; veins carry
the arterial curve 4.5 s later and are kept apart, because no mean transit time describes them. The
signal is the magnitude of a noisy gradient echo, and CBV is the area under the concentration over
the area under the arterial input. Not modelled: leakage of contrast during the first pass,
EPI distortion, a patient-specific arterial input.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .fields import Volume
from .tissue import Tissue, TissueTable

REPETITION_S = 1.5
ECHO_S = 0.03
NUM_FRAMES = 60
BOLUS_S = 12.0
VEIN_DELAY_S = 4.5
SNR = 80.0
RATE_PER_CONTRAST = 36.0
"""Relaxation rate in 1/s a unit of (ml/100 g) x (input of unit area in 1/s); grey matter's peak
signal falls by about 35 %."""

SAME_CURVE: Mapping[Tissue, tuple[Tissue, ...]] = {
    Tissue.GM: (Tissue.GM,),
    Tissue.WM: (Tissue.WM, Tissue.OEDEMA, Tissue.NECROSIS, Tissue.SCALP),
    Tissue.RIM: (Tissue.RIM,),
    Tissue.VEIN: (Tissue.VEIN,),
}
"""Classes that pass the bolus on alike; an area does not depend on the transit time."""

Curves = NDArray[np.float64]


def arterial_input(delay_s: float = 0.0) -> Curves:
    """Arterial input u^3 exp(-u / 1.5 s) of unit area in 1/s at every frame, later by a delay."""
    since = np.arange(NUM_FRAMES) * REPETITION_S - BOLUS_S - delay_s
    since = np.clip(since, 0.0, None)
    area = 6.0 * 1.5**4
    return np.asarray(since**3 * np.exp(-since / 1.5) / area)


def tissue_curve(mtt_s: float, delay_s: float = 0.0) -> Curves:
    """Concentration over time of a unit of CBV: the input through an exponential residue.

    The recursion ``acc = acc exp(-TR / MTT) + input`` is scaled so that its discrete sum has unit
    area, as the continuous convolution has.
    """
    keep = np.exp(-REPETITION_S / mtt_s)
    curve, held = np.empty(NUM_FRAMES), 0.0
    for frame, arriving in enumerate(arterial_input(delay_s)):
        held = held * keep + float(arriving)
        curve[frame] = held
    return np.asarray(curve * (1.0 - keep))


def class_curves(table: TissueTable) -> dict[Tissue, Curves]:
    """Concentration over time of one unit of CBV for each class of :data:`SAME_CURVE`."""
    curves: dict[Tissue, Curves] = {
        tissue: tissue_curve(table[tissue].mtt_s, table[tissue].att_s - 1.0)
        for tissue in SAME_CURVE
        if tissue is not Tissue.VEIN
    }
    return {**curves, Tissue.VEIN: arterial_input(VEIN_DELAY_S)}


def baseline_weight(table: TissueTable, tissue: Tissue) -> float:
    """Gradient-echo signal of a class before the bolus."""
    values = table[tissue]
    saturation = 1.0 - np.exp(-REPETITION_S / values.t1_s)
    return float(values.pd * saturation * np.exp(-ECHO_S / values.t2_s))


def measure_cbv(
    blood: Mapping[Tissue, Volume],
    baseline: Volume,
    table: TissueTable,
    rng: np.random.Generator,
) -> Volume:
    """CBV map in ml/100 g as a scanner's software would give it.

    Args:
        blood: CBV in ml/100 g of each key of :data:`SAME_CURVE`, on the scan's own grid.
        baseline: gradient-echo signal before the bolus, on the same grid.
        table: mean transit times.
        rng: for the noise.

    Returns:
        float32 of the grid's shape; 0 where there is no signal. Noise can make it negative.
    """
    here = baseline > 0.15 * float(baseline.max())
    curves = class_curves(table)
    amounts = np.stack([blood[t][here] for t in curves]).astype(np.float32)
    shapes = np.stack(list(curves.values()), axis=1).astype(np.float32)
    signal = baseline[here] * np.exp(-ECHO_S * RATE_PER_CONTRAST * (shapes @ amounts))
    sigma = float(baseline[here].mean()) / SNR
    noise = rng.standard_normal(signal.shape, dtype=np.float32)
    measured = np.zeros(baseline.shape, dtype=np.float32)
    measured[here] = _area_ratio(np.abs(signal + np.float32(sigma) * noise))
    return measured


def _area_ratio(signal: Volume) -> Volume:
    """CBV from signals (frames, voxels): -ln(S / S0) integrated, over the input's area of 1."""
    num_before = int(BOLUS_S / REPETITION_S)
    before = np.maximum(signal[:num_before].mean(axis=0), 1e-6)
    rate = -np.log(np.maximum(signal / before, 1e-3)) / (ECHO_S * RATE_PER_CONTRAST)
    return np.asarray(rate.sum(axis=0) * REPETITION_S, dtype=np.float32)
