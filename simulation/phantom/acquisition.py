"""From an ideal image on the lattice to a scanned volume on a native grid.

Order: point spread and slice profile (Gaussian), head motion, sampling, bias field, noise, scale.
The through-slice blur runs along the lattice's z axis; on an oblique grid it is off by the tilt.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from iedn.modalities import Modality

from .anatomy import HEAD_CENTRE_MM, rotation
from .config import SiteProtocol
from .fields import Lattice, Volume, along_axes, spline_field

Matrix = NDArray[np.float64]

FINEST_SPACING_MM = {"ADC": 1.375, "ASL": 3.4375, "CBV": 1.71875}
"""Diffusion, ASL and DSC images are never acquired finer than this."""
ASL_NOISE_PER_STRUCTURAL = 6.0
"""ASL's noise relative to its mean signal, in units of the structural images' 1 / SNR."""
ADC_NOISE = 1200.0
"""sd of ADC noise at SNR 1, in 1e-6 mm2/s."""


@dataclass(frozen=True)
class ScanGrid:
    """A volume's grid: NIfTI array order (x, y, z) and the affine to scanner RAS in mm."""

    shape: tuple[int, int, int]
    affine: Matrix
    spacing_mm: float
    slice_fwhm_mm: float


def scan_grid(protocol: SiteProtocol, image: str = Modality.T1WI) -> ScanGrid:
    """Grid of one image (a modality's name or ``CBV``): the field of view is the same for all."""
    factor = max(1.0, FINEST_SPACING_MM.get(image, 0.0) / protocol.spacing_mm)
    columns, rows = (max(8, round(n / factor)) for n in (protocol.columns, protocol.rows))
    size = np.array(
        [
            protocol.spacing_mm * protocol.columns / columns,
            protocol.spacing_mm * protocol.rows / rows,
            protocol.slice_spacing_mm,
        ]
    )
    shape = (columns, rows, protocol.slices)
    mirror = np.array([-1.0 if protocol.orientation == "LAS" else 1.0, 1.0, 1.0])
    turn = rotation(np.array([protocol.oblique_deg, 0.0, 0.0]))
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(size * mirror)
    affine[:3, 3] = HEAD_CENTRE_MM - affine[:3, :3] @ ((np.array(shape) - 1) / 2.0)
    return ScanGrid(shape, affine, float(size[0]), protocol.slice_fwhm_mm)


def _gaussian_matrix(sources_mm: Volume, targets_mm: Volume, fwhm_mm: float) -> Volume:
    """Weights (targets, sources) of a Gaussian average; rows sum to 1."""
    sigma = max(fwhm_mm / 2.3548, 1e-3)
    offset = targets_mm[:, None].astype(np.float64) - sources_mm[None, :]
    weights = np.exp(-0.5 * (offset / sigma) ** 2)
    # Far tails would be denormal numbers, with which products are several times slower.
    weights[weights < 1e-6] = 0.0
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def half_step_lattice(lattice: Lattice, widths_mm: tuple[float, float, float]) -> Lattice:
    """A lattice over the same head with steps of half the blur, never finer than the original."""
    steps = [max(s, w / 2.0) for s, w in zip(lattice.spacing_mm, widths_mm, strict=True)]
    counts = [
        int((n - 1) * s / step) + 1
        for n, s, step in zip(lattice.shape, lattice.spacing_mm, steps, strict=True)
    ]
    return Lattice(
        lattice.origin_mm, (steps[0], steps[1], steps[2]), (counts[0], counts[1], counts[2])
    )


@dataclass(frozen=True)
class Sampler:
    """Samples lattice volumes on one grid under one head position.

    Attributes:
        lattice: where volumes come from.
        grid: where they go.
        motion: 4 x 4, from the head's own frame to the scanner's.
    """

    lattice: Lattice
    grid: ScanGrid
    motion: Matrix

    def sample(self, volume: Volume) -> Volume:
        """The volume blurred and sampled; float32 of the grid's shape, 0 outside the lattice."""
        widths = (self.grid.spacing_mm, self.grid.spacing_mm, self.grid.slice_fwhm_mm)
        between = half_step_lattice(self.lattice, widths)
        x, y, z = (
            _gaussian_matrix(source, target, width)
            for source, target, width in zip(self.lattice.axes, between.axes, widths, strict=True)
        )
        to_head = np.linalg.inv(self.motion) @ self.grid.affine
        per_mm = 1.0 / np.array(between.spacing_mm)
        out = ndimage.affine_transform(
            along_axes(volume, (x, y, z)),
            per_mm[:, None] * to_head[:3, :3],
            per_mm * (to_head[:3, 3] - np.array(between.origin_mm)),
            output_shape=self.grid.shape,
            output=np.float32,
            order=1,
        )
        return np.asarray(out, dtype=np.float32)


def bias_field(rng: np.random.Generator, grid: ScanGrid, sd: float) -> Volume:
    """Receive sensitivity of mean about 1, smooth over about ten centimetres."""
    centre = (np.array(grid.shape) - 1) / 2.0
    steps = np.linalg.norm(grid.affine[:3, :3], axis=0)
    x, y, z = (
        np.asarray((np.arange(n) - c) * s, dtype=np.float32)
        for n, c, s in zip(grid.shape, centre, steps, strict=True)
    )
    return np.asarray(np.exp(sd * spline_field(rng, 110.0, (x, y, z))), dtype=np.float32)


def finish(
    image: Volume,
    mean_signal: float,
    modality: Modality,
    site: tuple[SiteProtocol, ScanGrid],
    rng: np.random.Generator,
) -> Volume:
    """Add what the scanner adds: bias field, noise and scale."""
    protocol, grid = site
    if modality is Modality.ADC:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        return np.rint(image + ADC_NOISE / protocol.snr * noise)
    if modality is Modality.ASL:
        sigma = ASL_NOISE_PER_STRUCTURAL * mean_signal / protocol.snr
        return image + np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    sigma = mean_signal / protocol.snr
    biased = image * bias_field(rng, grid, protocol.bias_sd)
    real = biased + np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    imaginary = np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.hypot(real, imaginary) * np.float32(protocol.scale))
