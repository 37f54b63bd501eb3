"""How the head lies: small motion between images, and patients who move before one of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iedn.modalities import Modality

from .anatomy import HEAD_CENTRE_MM, rotation
from .config import SiteProtocol

Matrix = NDArray[np.float64]

DEGREES_PER_MM = 0.6
"""sd of the turn about each axis for every millimetre of shift."""


@dataclass(frozen=True)
class HeadShift:
    """A rigid motion of the head, in the scanner's RAS frame.

    Attributes:
        shift_mm: along x, y, z.
        turn_deg: about x, then y, then z, through the head's centre.
    """

    shift_mm: tuple[float, float, float]
    turn_deg: tuple[float, float, float]

    @property
    def matrix(self) -> Matrix:
        """The motion as a 4 x 4 matrix in mm."""
        motion = np.eye(4)
        motion[:3, :3] = rotation(np.array(self.turn_deg))
        centre = np.array(HEAD_CENTRE_MM)
        motion[:3, 3] = centre - motion[:3, :3] @ centre + np.array(self.shift_mm)
        return motion


def rigid_motion(rng: np.random.Generator, sd_mm: float) -> Matrix:
    """A small random turn about the head's centre and shift, as a 4 x 4 matrix in mm."""
    x, y, z = (float(v) for v in rng.normal(0.0, DEGREES_PER_MM * sd_mm, 3))
    right, front, up = (float(v) for v in rng.normal(0.0, sd_mm, 3))
    return HeadShift((right, front, up), (x, y, z)).matrix


def misregistrations(protocol: SiteProtocol, rng: np.random.Generator) -> dict[Modality, HeadShift]:
    """The modalities of one scan before which the patient moved, and how.

    Drawn for all six, so that none moves another.
    """
    size = (len(Modality), 3)
    chances, directions, turns = (
        rng.random(len(Modality)),
        rng.standard_normal(size),
        rng.standard_normal(size),
    )
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    length_mm, wanted = protocol.misregistration_mm, protocol.misregistration_probability
    moved = {}
    for index, modality in enumerate(Modality):
        if chances[index] < wanted.get(modality, 0.0):
            right, front, up = (float(v) for v in length_mm * directions[index])
            x, y, z = (float(v) for v in DEGREES_PER_MM * length_mm * turns[index])
            moved[modality] = HeadShift((right, front, up), (x, y, z))
    return moved
