"""Independent random streams, one for each thing drawn.

A stream depends on the seed, on what is drawn, and on the patient and visit: never on the order
of work, the number of workers, the grid or on which other images a scan has.
"""

from enum import IntEnum

import numpy as np

from iedn.modalities import Modality


class Draw(IntEnum):
    """What a stream is for; the numbers are part of the generator and must not change."""

    COHORT = 1
    ANATOMY = 2
    LESION = 3
    LATENTS = 4
    POSE = 5
    MISSING = 6
    CBV = 7
    MISREGISTRATION = 8
    EXACT_COUNTS = 9
    T1WI = 16
    T2WI = 17
    FLAIR = 18
    ADC = 19
    T1_C = 20
    ASL = 21

    @classmethod
    def image(cls, modality: Modality) -> "Draw":
        """The stream of one modality's motion, bias field and noise."""
        return cls[modality.name]


def stream(seed: int, draw: Draw, patient: int = 0, visit: int = 0) -> np.random.Generator:
    """Generator for one thing; always four keys, since SeedSequence pads short keys with zeros."""
    return np.random.default_rng(np.random.SeedSequence([seed, int(draw), patient, visit]))
