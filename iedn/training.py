"""Local training: a fixed number of optimiser steps on one site's scans.

Adam starts afresh at every call, as a site resets its optimiser each round. Dropped modalities
leave their encoders without a gradient (None), so that Adam skips them. On a CPU with one thread
the result depends on model, scans, configuration and seed alone.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Generator, Tensor, nn

from .batching import (
    Samples,
    draw_batches,
    keep_modalities,
    maybe_flip,
    prefetched,
    restrict,
    scan_shapes,
)
from .config import TrainingConfig
from .errors import TrainingError
from .losses import LOSSES, Loss
from .model import Network
from .sample import IednBatch, collate

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class TrainingSummary:
    """What a call of ``train`` did.

    Attributes:
        steps: optimiser steps made.
        first_loss: of the first step, before any update.
        last_loss: of the last step.
        mean_loss: over all steps.
        seconds: wall time.
    """

    steps: int
    first_loss: float
    last_loss: float
    mean_loss: float
    seconds: float


def train(
    model: Network,
    samples: Samples,
    config: TrainingConfig,
    *,
    seed: int,
    device: torch.device = CPU,
    progress: Progress | None = None,
) -> TrainingSummary:
    """Train ``model`` in place for ``config.local_steps`` steps.

    Modalities that the network does not know are left out of the scans.

    Args:
        model: moved to ``device`` and left there, in training mode.
        samples: scans with CBV.
        config: see ``TrainingConfig``.
        seed: of batch order, flips and dropped modalities.
        device: where to compute.
        progress: called after each step with (steps made, loss).

    Raises:
        TrainingError: a loss is not finite.
        ValueError: no scan, a scan without CBV or without any of the network's modalities.
    """
    started = time.perf_counter()
    if len(samples) == 0:
        raise ValueError("training needs at least one scan")
    if config.batch_size == 1 and device.type == "cpu":
        logger.warning("batch_size 1 is slow on a CPU; 2 or more takes less time a scan")
    losses: list[float] = []
    with cpu_threads(config.threads):
        model.to(device).train()
        step = make_step(model, config, device)
        batches = islice(training_batches(model, samples, config, seed=seed), config.local_steps)
        for batch in prefetched(batches):
            losses.append(finite(step(on_device(batch, device)), number=len(losses) + 1))
            if progress is not None:
                progress(len(losses), losses[-1])
    return TrainingSummary(
        steps=len(losses),
        first_loss=losses[0],
        last_loss=losses[-1],
        mean_loss=sum(losses) / len(losses),
        seconds=time.perf_counter() - started,
    )


def import_ahead() -> None:
    """Import now what PyTorch would import, for seconds, at a process's first optimiser step."""
    parameter = torch.zeros(1)
    parameter.grad = torch.zeros(1)
    torch.optim.Adam([parameter], fused=True).step()


def training_batches(
    model: Network, samples: Samples, config: TrainingConfig, *, seed: int
) -> Iterator[IednBatch]:
    """Endless batches for ``model``: drawn, mirrored, cropped to the brain, modalities dropped."""
    generator = Generator().manual_seed(seed)
    network = model.config
    for numbers in draw_batches(scan_shapes(samples), config.batch_size, generator):
        scans = [restrict(samples[i], network.modalities) for i in numbers]
        scans = [maybe_flip(scan, config.flip_probability, generator) for scan in scans]
        batch = collate(scans, network.multiple)
        if model.accepts_missing:
            batch = keep_modalities(batch, config.keep_probability, generator)
        yield batch


def on_device(batch: IednBatch, device: torch.device) -> IednBatch:
    """The batch on ``device``, by way of pinned memory if that is a GPU."""
    if device.type != "cuda":
        return batch.to(device)
    pinned = replace(
        batch,
        images={m: x.pin_memory() for m, x in batch.images.items()},
        brain_mask=batch.brain_mask.pin_memory(),
        cbv=batch.cbv.pin_memory(),
    )
    return pinned.to(device)


def make_step(
    model: Network, config: TrainingConfig, device: torch.device
) -> Callable[[IednBatch], float]:
    """A function that makes one optimiser step on a batch and returns the loss before it.

    The loss that is returned leaves the proximal term out, so that it can be compared.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    anchor = [p.detach().clone() for p in model.parameters()] if config.proximal_mu else []

    def step(batch: IednBatch) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = batch_loss(model, batch, config, device).total
        loss.backward()  # type: ignore[no-untyped-call]
        add_proximal_gradient(model, anchor, config.proximal_mu)
        optimizer.step()
        return float(loss.detach())

    return step


def batch_loss(
    model: nn.Module, batch: IednBatch, config: TrainingConfig, device: torch.device
) -> Loss:
    """Loss of a batch; in bfloat16 on a GPU, in float32 elsewhere (bfloat16 is slow on CPUs)."""
    on_gpu = device.type == "cuda"
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=on_gpu):
        output = model(batch.images, batch.weights)
    return LOSSES[config.loss](output, batch.cbv, batch.brain_mask)


def add_proximal_gradient(model: nn.Module, anchor: list[Tensor], mu: float) -> None:
    """Add mu * (theta - anchor), FedProx, to every parameter that has a gradient."""
    if not anchor:
        return
    with torch.no_grad():
        for parameter, start in zip(model.parameters(), anchor, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=mu)


def finite(loss: float, *, number: int) -> float:
    """``loss`` if it is finite.

    Raises:
        TrainingError: it is not.
    """
    if loss - loss != 0:
        raise TrainingError(
            f"the loss of step {number} is {loss}; check the intensities of the scans "
            "and the learning rate"
        )
    return loss


@contextmanager
def cpu_threads(threads: int) -> Iterator[None]:
    """Compute with so many CPU threads inside the block; the number before is restored."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
