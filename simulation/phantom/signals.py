"""Signal equations: what each sequence sees of a tissue class.

Signals are computed a class and mixed by volume fraction; relaxation times are never mixed, since
a mean T1 would spoil the CSF null of FLAIR. All functions take scalars or arrays.

Sources: spin echo and inversion recovery are textbook Bloch solutions; contrast relaxivities
for gadobutrol at 3 T (r1 4.97 l/mmol/s, r2 about 6); ASL is the Buxton 1998 model quantified as in
the consensus paper (Alsop et al. 2015).
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from iedn.modalities import Modality

from .fields import Volume
from .tissue import BRAIN_TISSUES, Tissue, TissueTable, TissueValues

Signal = NDArray[np.floating]

R1_PER_MM_S = 4.97
R2_PER_MM_S = 6.0
BLOOD_CONTRAST_MM = 0.4
"""Contrast agent in blood five minutes after injection, mmol/l."""

LABEL_EFFICIENCY = 0.85
LABEL_DURATION_S = 1.8
POST_LABEL_DELAY_S = 1.8
BLOOD_T1_S = 1.65
PARTITION = 0.9
"""Blood-brain partition coefficient, ml/g."""


@dataclass(frozen=True)
class Timing:
    """Sequence times in seconds; ``ti_s`` 0 is a plain spin echo."""

    tr_s: float
    te_s: float
    ti_s: float = 0.0


TIMINGS = {
    Modality.T1WI: Timing(tr_s=0.6, te_s=0.010),
    Modality.T2WI: Timing(tr_s=5.0, te_s=0.100),
    Modality.FLAIR: Timing(tr_s=9.0, te_s=0.090, ti_s=2.5),
    Modality.T1_C: Timing(tr_s=0.6, te_s=0.010),
}


@dataclass(frozen=True)
class Head:
    """A head at one visit; arrays float32 (X, Y, Z).

    Attributes:
        fractions: (len(Tissue), X, Y, Z) volume fractions.
        cbv_factor: local CBV relative to the class value.
        cbf_factor: local CBF relative to the class value.
        att_factor: local arterial transit time relative to the class value.
    """

    fractions: Volume
    cbv_factor: Volume
    cbf_factor: Volume
    att_factor: Volume


def spin_echo(pd: ArrayLike, t1_s: ArrayLike, t2_s: ArrayLike, timing: Timing) -> Signal:
    """Magnitude of a (inversion-recovery) spin echo, as a fraction of water's equilibrium."""
    t1, t2 = np.asarray(t1_s), np.asarray(t2_s)
    recovered = np.exp(-timing.tr_s / t1)
    if timing.ti_s > 0.0:
        longitudinal = np.abs(1.0 - 2.0 * np.exp(-timing.ti_s / t1) + recovered)
    else:
        longitudinal = 1.0 - recovered
    return np.asarray(pd * longitudinal * np.exp(-timing.te_s / t2))


def relaxation_with_contrast(
    t1_s: float, t2_s: float, contrast_mm: ArrayLike
) -> tuple[Signal, Signal]:
    """T1 and T2 in seconds at a tissue concentration of contrast agent in mmol/l."""
    concentration = np.asarray(contrast_mm)
    t1 = 1.0 / (1.0 / t1_s + R1_PER_MM_S * concentration)
    return t1, 1.0 / (1.0 / t2_s + R2_PER_MM_S * concentration)


def contrast_concentration(cbv: ArrayLike, leakage_mm: float) -> Signal:
    """Contrast agent in tissue, mmol/l: what the blood volume holds, plus what leaked."""
    return np.asarray(cbv) / 100.0 * BLOOD_CONTRAST_MM + leakage_mm


def asl_difference(
    cbf: ArrayLike,
    att_s: ArrayLike,
    t1_s: float,
    m0: float = 1.0,
    *,
    pld_s: float = POST_LABEL_DELAY_S,
) -> Signal:
    """Control - label signal of single-delay pCASL (Buxton's general kinetic model).

    Args:
        cbf: ml/100 g/min.
        att_s: arterial transit time.
        t1_s: longitudinal relaxation time of the tissue.
        m0: equilibrium signal of the tissue.
        pld_s: post-labelling delay.
    """
    flow, att = np.asarray(cbf) / 6000.0, np.asarray(att_s)
    t1_app = 1.0 / (1.0 / t1_s + flow / PARTITION)
    gain = 2.0 * (m0 / PARTITION) * LABEL_EFFICIENCY * flow * t1_app * np.exp(-att / BLOOD_T1_S)
    since = LABEL_DURATION_S + pld_s - att
    arriving = gain * (1.0 - np.exp(-np.clip(since, 0.0, None) / t1_app))
    leaving = np.exp(-np.clip(since - LABEL_DURATION_S, 0.0, None) / t1_app)
    passed = gain * leaving * (1.0 - np.exp(-LABEL_DURATION_S / t1_app))
    return np.asarray(np.where(since < LABEL_DURATION_S, arriving, passed))


def asl_cbf(
    difference: ArrayLike, m0: ArrayLike = 1.0, *, pld_s: float = POST_LABEL_DELAY_S
) -> Signal:
    """Apparent CBF in ml/100 g/min by the consensus formula, which ignores late arrival."""
    decay = np.exp(pld_s / BLOOD_T1_S)
    labelled = 1.0 - np.exp(-LABEL_DURATION_S / BLOOD_T1_S)
    scale = 2.0 * LABEL_EFFICIENCY * BLOOD_T1_S * np.asarray(m0) * labelled
    return np.asarray(6000.0 * PARTITION * np.asarray(difference) * decay / scale)


def _mix(head: Head, value_of: dict[Tissue, float]) -> Volume:
    """Sum of class values weighted by fraction."""
    values = np.array([value_of.get(t, 0.0) for t in Tissue], dtype=np.float32)
    return np.asarray(np.tensordot(values, head.fractions, axes=1), dtype=np.float32)


def _plain(head: Head, table: TissueTable, timing: Timing) -> Volume:
    return _mix(head, {t: float(spin_echo(v.pd, v.t1_s, v.t2_s, timing)) for t, v in table.items()})


def _contrast_signal(values: TissueValues, cbv: ArrayLike, timing: Timing) -> Signal:
    concentration = contrast_concentration(cbv, values.leakage_mm)
    t1, t2 = relaxation_with_contrast(values.t1_s, values.t2_s, concentration)
    return spin_echo(values.pd, t1, t2, timing)


def _post_contrast(head: Head, table: TissueTable) -> Volume:
    timing = TIMINGS[Modality.T1_C]
    uniform = {
        t: float(_contrast_signal(v, v.cbv, timing))
        for t, v in table.items()
        if t not in BRAIN_TISSUES
    }
    image = _mix(head, uniform)
    for tissue in BRAIN_TISSUES:
        here, share = _present(head, tissue)
        cbv = table[tissue].cbv * head.cbv_factor.take(here)
        image.ravel()[here] += share * _contrast_signal(table[tissue], cbv, timing)
    return image


def _asl(head: Head, table: TissueTable, pld_s: float) -> Volume:
    image = np.zeros(head.cbf_factor.shape, dtype=np.float32)
    for tissue in (*BRAIN_TISSUES, Tissue.SCALP):
        here, share, cbf, att_s = _perfused(head, table, tissue)
        difference = asl_difference(cbf, att_s, table[tissue].t1_s, pld_s=pld_s)
        image.ravel()[here] += share * asl_cbf(difference, pld_s=pld_s)
    return image


def asl_difference_image(head: Head, table: TissueTable, pld_s: float) -> Volume:
    """Control - label on the lattice, relative to water's equilibrium signal.

    Each class has its proton density as equilibrium signal, as the general kinetic model has it.
    """
    image = np.zeros(head.cbf_factor.shape, dtype=np.float32)
    for tissue in (*BRAIN_TISSUES, Tissue.SCALP):
        here, share, cbf, att_s = _perfused(head, table, tissue)
        values = table[tissue]
        difference = asl_difference(cbf, att_s, values.t1_s, values.pd, pld_s=pld_s)
        image.ravel()[here] += share * difference
    return image


def _perfused(
    head: Head, table: TissueTable, tissue: Tissue
) -> tuple[NDArray[np.intp], Volume, Volume, Volume]:
    """Where a class is, its fraction, and its local CBF and transit time there."""
    values = table[tissue]
    here, share = _present(head, tissue)
    cbf = values.cbf * head.cbf_factor.take(here)
    return here, share, cbf, values.att_s * head.att_factor.take(here)


def saturation_recovery(head: Head, table: TissueTable, tr_s: float) -> Volume:
    """Signal of a 90 degree pulse every ``tr_s`` seconds, on the lattice."""
    return _mix(head, {t: v.pd * (1.0 - float(np.exp(-tr_s / v.t1_s))) for t, v in table.items()})


def _present(head: Head, tissue: Tissue) -> tuple[NDArray[np.intp], Volume]:
    """Flat indices of the voxels that hold a class, and its fraction there."""
    fraction = head.fractions[tissue]
    here = np.flatnonzero(fraction > 1e-3)
    return here, fraction.take(here)


def ideal_image(
    head: Head, table: TissueTable, modality: Modality, *, pld_s: float = POST_LABEL_DELAY_S
) -> Volume:
    """Noise-free image (X, Y, Z) on the lattice.

    Structural images are relative to water's equilibrium signal, ADC is in 1e-6 mm2/s, ASL is
    apparent CBF in ml/100 g/min.
    """
    if modality is Modality.ADC:
        return _mix(head, {t: 1000.0 * v.adc for t, v in table.items()})
    if modality is Modality.ASL:
        return _asl(head, table, pld_s)
    if modality is Modality.T1_C:
        return _post_contrast(head, table)
    return _plain(head, table, TIMINGS[modality])


def cbv_of(head: Head, table: TissueTable, tissues: Collection[Tissue]) -> Volume:
    """True CBV in ml/100 g that some classes contribute on the lattice.

    Local variation applies to capillary blood, not to veins.
    """
    capillary = [t for t in tissues if t is not Tissue.VEIN]
    cbv = np.zeros(head.cbv_factor.shape, dtype=np.float32)
    for tissue in capillary:
        cbv += table[tissue].cbv * head.fractions[tissue]
    cbv *= head.cbv_factor
    if Tissue.VEIN in tissues:
        cbv += table[Tissue.VEIN].cbv * head.fractions[Tissue.VEIN]
    return cbv


def true_cbf(head: Head, table: TissueTable) -> Volume:
    """True CBF in ml/100 g/min on the lattice."""
    return np.asarray(_mix(head, {t: v.cbf for t, v in table.items()}) * head.cbf_factor)
