"""Training whose unit of privacy is the patient: DP-SGD as a loop over patients.

A step draws each patient with one probability, by itself (Poisson). The gradient of the mean loss
over a patient's scans, however many there are, is clipped to norm C as a whole; the sum over those
drawn gets Gaussian noise of standard deviation sigma * C and is divided by a constant. A step
where nobody was drawn is a step of noise alone. Nothing is computed across patients, and a patient
whose gradient is not finite contributes zero: else a single broken scan would show in all weights.

Sampling and noise come from the operating system, never from a run's seed: a coordinator that
knew the noise could take it off again.
"""

import os
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from iedn.batching import Samples, keep_modalities, maybe_flip, restrict
from iedn.config import TrainablePart, TrainingConfig
from iedn.model import Network
from iedn.parameters import group_of
from iedn.sample import collate
from iedn.training import (
    CPU,
    Progress,
    TrainingSummary,
    add_proximal_gradient,
    batch_loss,
    cpu_threads,
    on_device,
)

from .accounting import PrivacyEvent

Scan = TypeVar("Scan")
ScanLoss = Callable[[Scan, Generator], Tensor]
"""Scalar loss of one scan; the generator is for augmentation."""

_STATE_WORDS = 624
_STATE_HEADER_BYTES = 24


@dataclass(frozen=True)
class NoisePlan:
    """What a round of private training does; constants, none taken from the scans.

    Attributes:
        clip: C, largest norm a patient can contribute to a step.
        noise_multiplier: sigma, in units of ``clip``.
        sample_rate: q, probability that a patient is drawn at a step.
        patients_per_step: B, what the noisy sum is divided by; about q times the patients.
        steps: of the round, whoever is drawn.
    """

    clip: float
    noise_multiplier: float
    sample_rate: float
    patients_per_step: int
    steps: int

    @property
    def event(self) -> PrivacyEvent:
        """What the round costs."""
        return PrivacyEvent(self.noise_multiplier, self.sample_rate, self.steps)


class Entropy(Protocol):
    """Where the randomness of private training comes from."""

    def draw(self, patients: int, rate: float) -> list[int]:
        """Numbers of the patients of a step, each in with probability ``rate`` by itself."""

    def noise(self, device: torch.device) -> Generator:
        """A generator for the noise of one step."""

    def augmentation(self, patient: int) -> Generator:
        """A generator for one patient at one step; nobody else's depends on it."""


class SystemEntropy:
    """The operating system's; the only one that the product has."""

    def draw(self, patients: int, rate: float) -> list[int]:
        """Poisson sampling."""
        source = random.SystemRandom()
        return [number for number in range(patients) if source.random() < rate]

    def noise(self, device: torch.device) -> Generator:
        """Fresh for every step.

        PyTorch's generator of a CPU takes 32 bits of a seed and ignores the others, few enough to
        try them all: so its whole state is set. That of a GPU has a key of 64 bits.
        """
        if device.type == "cpu":
            return _generator_with_state(os.urandom(4 * _STATE_WORDS))
        return Generator(device).manual_seed(int.from_bytes(os.urandom(8), "little"))

    def augmentation(self, patient: int) -> Generator:
        """Not secret, only independent."""
        return Generator().manual_seed(int.from_bytes(os.urandom(4), "little"))


SYSTEM_ENTROPY = SystemEntropy()


class PatientOptimizer:
    """Adds up clipped gradients of patients, then steps with noise.

    Args:
        optimizer: moves the trained parameters.
        plan: clipping, noise and divisor.
        entropy: source of the noise.
        before_step: called when the noisy gradient is in ``.grad``; may add to it what does not
            depend on scans.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        plan: NoisePlan,
        *,
        entropy: Entropy = SYSTEM_ENTROPY,
        before_step: Callable[[], None] | None = None,
    ) -> None:
        self._entropy = entropy
        self._before_step = before_step
        self._private = DPOptimizer(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.clip,
            expected_batch_size=plan.patients_per_step,
            secure_mode=True,
        )
        self._private.attach_step_hook(self._after_noise)

    def add(self) -> None:
        """Clip the gradient of one patient, which is in ``.grad``, and add it to the sum."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        if not all(bool(torch.isfinite(g).all()) for g in gradients):
            gradients = [torch.zeros_like(g) for g in gradients]
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad_sample = gradient.detach().unsqueeze(0)  # type: ignore[attr-defined]
        self._private.signal_skip_step(True)
        self._private.step()
        self._private.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Add noise to the sum, also to an empty one, and move the parameters."""
        for parameter in self._parameters:
            nobody = parameter.new_zeros((0, *parameter.shape))
            parameter.grad_sample = nobody  # type: ignore[attr-defined]
        self._private.generator = self._entropy.noise(self._parameters[0].device)
        self._private.signal_skip_step(False)
        self._private.step()
        self._private.zero_grad(set_to_none=True)

    @property
    def _parameters(self) -> list[nn.Parameter]:
        parameters: list[nn.Parameter] = self._private.params
        return parameters

    def _after_noise(self, _: DPOptimizer) -> None:
        for parameter in self._parameters:
            if parameter.grad is None:
                raise AssertionError("every trained parameter has a noisy gradient")
            # Adam's fused kernel reads memory as it lies: the layouts must agree.
            laid_out = torch.empty_like(parameter)
            parameter.grad = laid_out.copy_(parameter.grad)
        if self._before_step is not None:
            self._before_step()


def private_steps(
    optimizer: PatientOptimizer,
    patients: Sequence[Sequence[Scan]],
    scan_loss: ScanLoss[Scan],
    plan: NoisePlan,
    entropy: Entropy = SYSTEM_ENTROPY,
) -> Iterator[float]:
    """Make the steps of a round; yields each step's mean loss, NaN where nobody was drawn.

    Args:
        optimizer: of the parameters that ``scan_loss`` depends on.
        patients: the scans of each.
        scan_loss: of one scan.
        plan: the number of steps, and how patients are drawn.
        entropy: source of the draws.
    """
    for _ in range(plan.steps):
        losses = []
        for number in entropy.draw(len(patients), plan.sample_rate):
            losses.append(patient_gradient(patients[number], scan_loss, entropy, number))
            optimizer.add()
        optimizer.step()
        yield sum(losses) / len(losses) if losses else float("nan")


def patient_gradient(
    scans: Sequence[Scan], scan_loss: ScanLoss[Scan], entropy: Entropy, patient: int
) -> float:
    """Put the gradient of a patient's mean loss over their scans into ``.grad``; that loss."""
    generator = entropy.augmentation(patient)
    total = 0.0
    for scan in scans:
        loss = scan_loss(scan, generator) / len(scans)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


@dataclass(frozen=True)
class PatientScans:
    """Training scans, and which of them belong to one patient.

    Attributes:
        samples: scans with CBV.
        by_patient: numbers of the scans of each patient.
    """

    samples: Samples
    by_patient: tuple[tuple[int, ...], ...]

    @classmethod
    def grouped(cls, samples: Samples, patients: Sequence[str]) -> "PatientScans":
        """Group scans by whose they are, ``patients[i]`` being the patient of scan i."""
        numbers: dict[str, list[int]] = {}
        for number, patient in enumerate(patients):
            numbers.setdefault(patient, []).append(number)
        return cls(samples, tuple(tuple(n) for n in numbers.values()))


def train_privately(
    model: Network,
    scans: PatientScans,
    settings: tuple[TrainingConfig, NoisePlan],
    *,
    device: torch.device = CPU,
    entropy: Entropy = SYSTEM_ENTROPY,
    progress: Progress | None = None,
) -> TrainingSummary:
    """Train in place the parameters that require a gradient (see ``freeze``).

    ``TrainingConfig.batch_size`` plays no part: a step takes the patients that were drawn. A loss
    that is not finite ends nothing, since the end of training would tell of the scan behind it.

    Args:
        model: moved to ``device`` and left there, in training mode.
        scans: of at least one patient.
        settings: of training, whose ``local_steps`` are those of the plan, and of the noise.
        device: where to compute.
        entropy: another one than the operating system's is for tests only.
        progress: called after each step with (steps made, loss).
    """
    started = time.perf_counter()
    config, plan = settings
    losses: list[float] = []
    with cpu_threads(config.threads):
        model.to(device).train()
        optimizer = _optimizer(model, config, plan, entropy)
        loss = scan_loss_of(model, scans.samples, config, device)
        for value in private_steps(optimizer, scans.by_patient, loss, plan, entropy):
            losses.append(value)
            if progress is not None:
                progress(len(losses), value)
    known = [value for value in losses if value - value == 0]
    return TrainingSummary(
        steps=len(losses),
        first_loss=losses[0],
        last_loss=losses[-1],
        mean_loss=sum(known) / len(known) if known else float("nan"),
        seconds=time.perf_counter() - started,
    )


def scan_loss_of(
    model: Network, samples: Samples, config: TrainingConfig, device: torch.device = CPU
) -> ScanLoss[int]:
    """The loss of scan number i alone: mirrored, cropped to its brain, modalities dropped."""
    network = model.config

    def loss(number: int, generator: Generator) -> Tensor:
        scan = restrict(samples[number], network.modalities)
        batch = collate([maybe_flip(scan, config.flip_probability, generator)], network.multiple)
        if model.accepts_missing:
            batch = keep_modalities(batch, config.keep_probability, generator)
        return batch_loss(model, on_device(batch, device), config, device).total

    return loss


def freeze(model: Network, groups: Collection[str], part: TrainablePart) -> None:
    """Let only the named part of the given groups be trained; all else gets no noise either."""
    norms = {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, nn.GroupNorm)
        for parameter, _ in module.named_parameters(recurse=False)
    }
    for name, parameter in model.named_parameters():
        is_trained = group_of(name) in groups and (part != "norms" or name in norms)
        parameter.requires_grad_(is_trained)


def _optimizer(
    model: Network, config: TrainingConfig, plan: NoisePlan, entropy: Entropy
) -> PatientOptimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trained, lr=config.learning_rate, fused=True)
    anchor = [p.detach().clone() for p in model.parameters()] if config.proximal_mu else []
    return PatientOptimizer(
        adam,
        plan,
        entropy=entropy,
        before_step=lambda: add_proximal_gradient(model, anchor, config.proximal_mu),
    )


def _generator_with_state(words: bytes) -> Generator:
    """A CPU generator whose whole state is ``words``, 624 of 32 bits.

    A state in PyTorch's format is a header, then every word in 64 bits.
    """
    generator = Generator().manual_seed(0)  # a header that says: draw new numbers first
    state = generator.get_state().numpy().copy()
    end = _STATE_HEADER_BYTES + 8 * _STATE_WORDS
    fresh = np.frombuffer(words, "<u4").astype("<u8").view(np.uint8)
    state[_STATE_HEADER_BYTES:end] = fresh
    generator.set_state(torch.from_numpy(state))
    return generator
