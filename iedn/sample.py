"""One scan, and a batch of scans, as the network sees them.

Axis order is (D, H, W): slices, rows, columns. Intensities are x / (4 * mean inside the brain
mask), so that the mean inside the brain is 0.25 for every image and for CBV.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .modalities import Modality, in_order

BRAIN_MEAN = 0.25
DATA_RANGE = 1.0
BOX_MARGIN = 2

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class IednSample:
    """One scan on the preset's grid.

    Attributes:
        images: float32 (1, D, H, W) a present modality; an absent one has no entry.
        brain_mask: float32 (1, D, H, W), 0 or 1.
        cbv: float32 (1, D, H, W), >= 0, or None where it was not measured.
    """

    images: Mapping[Modality, Tensor]
    brain_mask: Tensor
    cbv: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.images:
            msg = "a sample needs at least one modality"
            raise ValueError(msg)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities present, in the enum's order."""
        return in_order(self.images)

    def crop(self, box: Box) -> "IednSample":
        """The same scan inside ``box`` (slices along D, H, W)."""
        index = (slice(None), *box)
        return IednSample(
            images={m: image[index] for m, image in self.images.items()},
            brain_mask=self.brain_mask[index],
            cbv=None if self.cbv is None else self.cbv[index],
        )


@dataclass(frozen=True)
class IednBatch:
    """B scans of one shape.

    Attributes:
        images: (B, 1, D, H, W) a modality that any scan of the batch has; zeros where absent.
        weights: a_m of shape (B,), 1 where the scan has the modality, else 0.
        brain_mask: (B, 1, D, H, W), 0 or 1.
        cbv: (B, 1, D, H, W).
    """

    images: dict[Modality, Tensor]
    weights: dict[Modality, Tensor]
    brain_mask: Tensor
    cbv: Tensor

    def to(self, device: torch.device) -> "IednBatch":
        """The batch on another device."""
        return IednBatch(
            images={m: x.to(device, non_blocking=True) for m, x in self.images.items()},
            weights={m: a.to(device, non_blocking=True) for m, a in self.weights.items()},
            brain_mask=self.brain_mask.to(device, non_blocking=True),
            cbv=self.cbv.to(device, non_blocking=True),
        )


def brain_box(masks: Sequence[Tensor], multiple: int, margin: int = BOX_MARGIN) -> Box:
    """Smallest box around the union of brain masks that the network accepts.

    The box has ``margin`` voxels around the brain in-plane where the grid allows, its rows and
    columns are multiples of ``multiple`` (at least twice it); along slices it is tight, with at
    least two slices.

    Args:
        masks: (1, D, H, W) tensors of one shape.
        multiple: ``NetworkConfig.multiple``.
        margin: in-plane margin in voxels.

    Raises:
        ValueError: all masks are empty, or the grid itself is not a multiple of ``multiple``.
    """
    union = torch.stack([m[0] > 0 for m in masks]).any(dim=0)
    if not bool(union.any()):
        msg = "the brain mask is empty"
        raise ValueError(msg)
    depth_range = _extent(union.any(dim=2).any(dim=1), margin=0, multiple=1, least=2)
    rows = _extent(union.any(dim=2).any(dim=0), margin, multiple, least=2 * multiple)
    columns = _extent(union.any(dim=1).any(dim=0), margin, multiple, least=2 * multiple)
    return depth_range, rows, columns


def _extent(occupied: Tensor, margin: int, multiple: int, least: int) -> slice:
    size = int(occupied.numel())
    if size % multiple or size < least:
        msg = f"size {size} must be a multiple of {multiple} and at least {least}"
        raise ValueError(msg)
    where = occupied.nonzero()
    first = max(int(where[0]) - margin, 0)
    last = min(int(where[-1]) + 1 + margin, size)
    length = max(-(-(last - first) // multiple) * multiple, least)
    start = min(max((first + last - length) // 2, 0), size - length)
    return slice(start, start + length)


def collate(samples: Sequence[IednSample], multiple: int) -> IednBatch:
    """Stack scans of one shape into a batch cropped to the union of their brain boxes.

    Args:
        samples: scans of one shape (D, H, W), all with CBV.
        multiple: ``NetworkConfig.multiple``.

    Raises:
        ValueError: no scan, a scan without CBV, or unequal shapes.
    """
    if not samples:
        msg = "a batch needs at least one scan"
        raise ValueError(msg)
    shapes = {tuple(s.brain_mask.shape) for s in samples}
    if len(shapes) > 1:
        msg = f"scans of one batch must have one shape, got {sorted(shapes)}"
        raise ValueError(msg)
    box = brain_box([s.brain_mask for s in samples], multiple)
    cropped = [s.crop(box) for s in samples]
    targets = [s.cbv for s in cropped if s.cbv is not None]
    if len(targets) != len(cropped):
        msg = "a training batch needs the measured CBV of every scan"
        raise ValueError(msg)
    present = in_order(m for s in cropped for m in s.images)
    empty = torch.zeros_like(cropped[0].brain_mask)
    return IednBatch(
        images={m: torch.stack([s.images.get(m, empty) for s in cropped]) for m in present},
        weights={m: torch.tensor([float(m in s.images) for s in cropped]) for m in present},
        brain_mask=torch.stack([s.brain_mask for s in cropped]),
        cbv=torch.stack(targets),
    )
