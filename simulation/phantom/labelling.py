"""A raw pCASL series as a scanner exports it: M0, then control and label in turn.

The arrangement and its description follow BIDS (aslcontext and sidecar). The subtracted series has
the noise of the map that ``asl_output = "cbf"`` gives. Not modelled: background suppression,
motion and physiological noise between the volumes, T2* decay and the receive field (both divide
out of control - label over M0).
"""

from typing import Any

import numpy as np

from .config import SiteProtocol
from .fields import Volume
from .signals import LABEL_DURATION_S, LABEL_EFFICIENCY, asl_cbf

M0_REPETITION_S = 10.0
READOUT_S = 0.7
ECHO_S = 0.012
FIELD_TESLA = {"1.5T": 1.5, "3T": 3.0}


def repetition_s(protocol: SiteProtocol) -> float:
    """Time from one labelling to the next."""
    return LABEL_DURATION_S + protocol.pld_s + READOUT_S


def volume_types(protocol: SiteProtocol) -> tuple[str, ...]:
    """What each volume of the file is, in BIDS words."""
    if protocol.asl_output == "cbf":
        return ("cbf",)
    return ("m0scan", *("control", "label") * protocol.asl_pairs)


def asl_context(protocol: SiteProtocol) -> str:
    """Content of ``aslcontext.tsv``."""
    return "\n".join(("volume_type", *volume_types(protocol))) + "\n"


def asl_sidecar(protocol: SiteProtocol) -> dict[str, Any]:
    """Content of the JSON beside the ASL file; times in seconds."""
    described = {
        "ArterialSpinLabelingType": "PCASL",
        "PostLabelingDelay": protocol.pld_s,
        "LabelingDuration": LABEL_DURATION_S,
        "LabelingEfficiency": LABEL_EFFICIENCY,
        "BackgroundSuppression": False,
        "MagneticFieldStrength": FIELD_TESLA[protocol.field],
        "MRAcquisitionType": "3D",
        "EchoTime": ECHO_S,
    }
    if protocol.asl_output == "cbf":
        repetition: list[float] = [repetition_s(protocol)]
        measured = {"M0Type": "Absent", "TotalAcquiredPairs": 1, "Units": "mL/100g/min"}
    else:
        repetition = [M0_REPETITION_S, *[repetition_s(protocol)] * (2 * protocol.asl_pairs)]
        measured = {"M0Type": "Included", "TotalAcquiredPairs": protocol.asl_pairs}
    times = repetition if len(repetition) > 1 else repetition[0]
    return {**described, **measured, "RepetitionTimePreparation": times}


def label_series(
    signals: tuple[Volume, Volume, Volume],
    noise: tuple[float, float],
    protocol: SiteProtocol,
    rng: np.random.Generator,
) -> Volume:
    """The series with its noise.

    Args:
        signals: M0, control, and control - label, each (X, Y, Z), relative to water's equilibrium.
        noise: wanted sd of the computed CBF in ml/100 g/min, and the M0 at which it is that.
        protocol: number of pairs and scale.
        rng: for the noise.

    Returns:
        float32 (X, Y, Z, 1 + 2 pairs), scaled as the structural images are.
    """
    m0, control, difference = signals
    cbf_sd, typical_m0 = noise
    per_difference = float(asl_cbf(1.0, typical_m0, pld_s=protocol.pld_s))
    sigma = np.float32(cbf_sd / per_difference / np.sqrt(2.0 / protocol.asl_pairs))
    volumes = np.stack([m0, *(control, control - difference) * protocol.asl_pairs], axis=-1)
    real, imaginary = (
        sigma * rng.standard_normal(volumes.shape, dtype=np.float32) for _ in range(2)
    )
    return np.asarray(np.hypot(volumes + real, imaginary) * np.float32(protocol.scale))
