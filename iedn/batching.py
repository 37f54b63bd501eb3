"""Which scans and which of their modalities a training step sees.

All draws come from one generator, so that a seed fixes them. Batches hold scans of one shape,
because slices stay native; within an epoch every scan is seen at least once.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Protocol, TypeVar

import torch
from torch import Generator

from .modalities import Modality, in_order
from .sample import IednBatch, IednSample

Shape = tuple[int, ...]
Item = TypeVar("Item")


class Samples(Protocol):
    """A map-style sequence of scans, such as a list or a dataset.

    It may have an attribute ``shapes``, one tuple a scan, so that scans need not be read to learn
    their shapes.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> IednSample: ...


def prefetched(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; while one is used, the next is made in a thread.

    An error in making an item is raised where that item would have come.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-batch") as maker:
        following = maker.submit(_take, items)
        while item := following.result():
            following = maker.submit(_take, items)
            yield item[0]


def _take(items: Iterator[Item]) -> tuple[Item, ...]:
    """The next item, or nothing at the end."""
    return tuple(islice(items, 1))


def scan_shapes(samples: Samples) -> list[Shape]:
    """Shape of every scan's brain mask; reads all scans unless ``samples.shapes`` tells."""
    known: Sequence[Shape] | None = getattr(samples, "shapes", None)
    if known is not None:
        return [tuple(shape) for shape in known]
    return [tuple(samples[i].brain_mask.shape) for i in range(len(samples))]


def draw_batches(
    shapes: Sequence[Shape], batch_size: int, generator: Generator
) -> Iterator[list[int]]:
    """Endless batches of scan numbers, each of one shape, in epochs of random order.

    The last batch of a shape is filled with scans of that shape seen earlier in the epoch, and
    with repeats where there are fewer scans than ``batch_size``.
    """
    buckets: dict[Shape, list[int]] = {}
    for index, shape in enumerate(shapes):
        buckets.setdefault(shape, []).append(index)
    while True:
        batches = []
        for members in buckets.values():
            order = [members[i] for i in permutation(len(members), generator)]
            for start in range(0, len(order), batch_size):
                batches.append([order[(start + i) % len(order)] for i in range(batch_size)])
        for position in permutation(len(batches), generator):
            yield batches[position]


def permutation(count: int, generator: Generator) -> list[int]:
    """The numbers 0 to ``count - 1`` in random order."""
    return [int(i) for i in torch.randperm(count, generator=generator)]


def flip(sample: IednSample) -> IednSample:
    """The scan mirrored left-right (along W)."""
    return IednSample(
        images={m: image.flip(-1) for m, image in sample.images.items()},
        brain_mask=sample.brain_mask.flip(-1),
        cbv=None if sample.cbv is None else sample.cbv.flip(-1),
    )


def maybe_flip(sample: IednSample, probability: float, generator: Generator) -> IednSample:
    """The scan, mirrored with ``probability``; draws nothing where that is 0."""
    if probability == 0:
        return sample
    return flip(sample) if float(torch.rand((), generator=generator)) < probability else sample


def restrict(sample: IednSample, modalities: Sequence[Modality]) -> IednSample:
    """The scan with only those of its images that are in ``modalities``.

    Raises:
        ValueError: none is left.
    """
    return replace(sample, images={m: x for m, x in sample.images.items() if m in modalities})


def keep_modalities(batch: IednBatch, probability: float, generator: Generator) -> IednBatch:
    """Drop modalities at random, for the whole batch, so that dropped encoders cost nothing.

    Each is kept with ``probability``. A scan that would lose all of its modalities gets one of
    them back, drawn uniformly.
    """
    present = in_order(batch.images)
    chances = torch.rand(len(present), generator=generator).tolist()
    kept = {m for m, chance in zip(present, chances, strict=True) if chance < probability}
    for sample in range(batch.brain_mask.shape[0]):
        own = [m for m in present if float(batch.weights[m][sample]) > 0]
        if not kept.intersection(own):
            kept.add(own[int(torch.randint(len(own), (), generator=generator))])
    return replace(
        batch,
        images={m: batch.images[m] for m in present if m in kept},
        weights={m: batch.weights[m] for m in present if m in kept},
    )
