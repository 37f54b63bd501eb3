"""CBF from raw ASL: label-control differences and their calibration image.

One model, single-delay PCASL as recommended by the ISMRM perfusion group (Alsop et al. 2015, Magn
Reson Med 73:102). Maps that a scanner has already computed do not pass here.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iedn.errors import ScanError

from .asl_context import Labelling, load_labelling, m0_path, volume_types
from .reading import FloatArray, Volume, read_volume

LEAST_M0 = 0.05
"""Voxels whose M0 is below this fraction of its 95th percentile hold noise, not tissue: CBF 0."""

_SECONDS_TO_UNITS = 6000.0  # ml/g/s to ml/100g/min


def cbf_from_deltam(  # noqa: PLR0913  # every constant of the formula may differ at a site
    deltam: FloatArray,
    m0: FloatArray,
    *,
    pld_s: float | NDArray[np.float64],
    labelling_duration_s: float,
    t1_blood_s: float = 1.65,
    efficiency: float = 0.85,
    partition: float = 0.9,
) -> FloatArray:
    """Cerebral blood flow in ml/100g/min from the difference control - label.

        CBF = 6000 * partition * deltam * exp(pld / T1b)
              / (2 * efficiency * T1b * m0 * (1 - exp(-duration / T1b)))

    Alsop 2015, equation 1: all label has arrived (transit time below the delay) and relaxes with
    the blood's T1. Where blood arrives later, CBF comes out too low. The same unit for ``deltam``
    and ``m0``; m0 is the fully relaxed magnetisation of tissue.

    Args:
        deltam: any shape.
        m0: the same shape; where it is not above 0, CBF is 0.
        pld_s: post-labelling delay; an array that broadcasts against ``deltam`` for a readout
            slice by slice.
        labelling_duration_s: how long blood was labelled.
        t1_blood_s: T1 of arterial blood.
        efficiency: of labelling.
        partition: blood-brain partition coefficient of water in ml/g.
    """
    gain = _SECONDS_TO_UNITS * partition * np.exp(np.asarray(pld_s) / t1_blood_s)
    loss = 2.0 * efficiency * t1_blood_s * -np.expm1(-labelling_duration_s / t1_blood_s)
    known = m0 > 0.0
    ratio = np.divide(deltam, m0, out=np.zeros(deltam.shape), where=known)
    return np.asarray(gain / loss * ratio, dtype=np.float32)


def read_raw_asl(path: Path, *, index: int | None = None, pld_s: float | None = None) -> Volume:
    """The CBF map of a raw ASL file, in ml/100g/min, with sidecar and table beside it.

    Differences (``deltam``) are averaged; without them, control minus label. The calibration is
    the mean of the ``m0scan`` volumes, the image beside it on the same grid, or the sidecar's
    number, taken as fully relaxed.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        index: only this difference volume; None averages all.
        pld_s: post-labelling delay; None takes the sidecar's.

    Raises:
        ScanError: as for ``read_volume``; E201, what is beside the file does not suffice.
    """
    types = volume_types(path)
    labelling = load_labelling(path, types)
    if pld_s is not None:
        labelling = replace(labelling, pld_s=pld_s)
    deltam = _difference(path, types, index)
    m0 = _calibration(path, types, labelling, deltam)
    cbf = cbf_from_deltam(
        deltam.array,
        np.where(m0 >= LEAST_M0 * np.nanpercentile(m0, 95), m0, np.float32(0.0)),
        pld_s=_delays(labelling, deltam.array.shape[0]),
        labelling_duration_s=labelling.labelling_duration_s,
        t1_blood_s=labelling.t1_blood_s,
        efficiency=labelling.efficiency,
    )
    return replace(deltam, array=cbf)


def _difference(path: Path, types: tuple[str, ...], index: int | None) -> Volume:
    """Mean of control - label over the series."""
    if index is not None and (index >= len(types) or types[index] != "deltam"):
        found = types[index] if index < len(types) else f"only volumes 0 to {len(types) - 1}"
        raise ScanError("E201", f"asl_volume is {index}, there is {found}. Allowed: a deltam")
    if index is not None:
        return read_volume(path, index=index)
    if "deltam" in types:
        return read_volume(path, index=_volumes(types, "deltam"))
    control = read_volume(path, index=_volumes(types, "control"))
    label = read_volume(path, index=_volumes(types, "label"))
    return replace(control, array=control.array - label.array)


def _volumes(types: tuple[str, ...], kind: str) -> tuple[int, ...]:
    return tuple(number for number, found in enumerate(types) if found == kind)


def _calibration(
    path: Path, types: tuple[str, ...], labelling: Labelling, deltam: Volume
) -> FloatArray:
    if labelling.m0 == "Included":
        return read_volume(path, index=_volumes(types, "m0scan")).array
    if labelling.m0_estimate is not None:
        return np.full(deltam.array.shape, labelling.m0_estimate, dtype=np.float32)
    m0 = read_volume(m0_path(path))
    same = m0.array.shape == deltam.array.shape and np.allclose(m0.affine, deltam.affine, atol=0.1)
    if not same:
        raise ScanError("E201", f"{m0_path(path).name} is not on the grid of {path.name}")
    return m0.array


def _delays(labelling: Labelling, num_slices: int) -> float | NDArray[np.float64]:
    """Delay of every slice (D, 1, 1): later slices see blood that has relaxed longer."""
    times = labelling.slice_times_s
    if not times:
        return labelling.pld_s
    if len(times) != num_slices:
        problem = f"SliceTiming has {len(times)} entries, the file {num_slices} slices"
        raise ScanError("E201", problem)
    return labelling.pld_s + np.array(times)[:, None, None]
