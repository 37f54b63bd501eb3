"""What the coordinator decides for all sites: grid, network, training.

Every model is frozen and refuses unknown keys. What a site decides for itself is in
``sites.config`` and never leaves it.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .modalities import Modality, in_order

Architecture = Literal["iedn", "encoder-decoder"]
LossName = Literal["paper", "reference"]
UpEncoding = Literal["fp32", "fp16", "bf16", "int8", "int4"]
DownEncoding = Literal["fp32", "fp16", "int8", "int4"]
Recompute = Literal["nothing", "norms", "encoders"]
"""What training computes twice to save memory; a device's own affair, the numbers stay the same."""

PrivacyTier = Literal["off", "reconstruction-guard", "formal"]
"""How much patients are protected by noise, least first."""
TrainablePart = Literal["all", "decoder", "norms"]
"""What private training changes; the smaller, the less noise in all."""


class FrozenModel(BaseModel):
    """A pydantic model that is frozen and refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GridConfig(FrozenModel):
    """In-plane grid of all volumes; slices stay native.

    Attributes:
        rows: H, voxels along the second axis of an array (D, H, W).
        columns: W.
        spacing_mm: in-plane voxel size, the same for rows and columns.
    """

    rows: int = Field(ge=8, le=1024)
    columns: int = Field(ge=8, le=1024)
    spacing_mm: float = Field(gt=0.0, le=20.0)


class NetworkConfig(FrozenModel):
    """Size and shape of the network.

    Attributes:
        architecture: ``iedn`` (one encoder a modality, fused) or ``encoder-decoder`` (the
            baseline: modalities as input channels, one model a combination).
        modalities: inputs the network has encoders (or channels) for, in the enum's order.
        base_channels: channels at full resolution; doubled at every level.
        depth: number of in-plane halvings.
        refine_blocks: residual blocks a level in the decoder's refinement bank.
        channels_per_group: channels that share normalisation statistics; 1 is instance norm.
        self_refine: a seventh encoder reads the first pass's CBV and a second pass is run.
    """

    architecture: Architecture = "iedn"
    modalities: tuple[Modality, ...] = tuple(Modality)
    base_channels: int = Field(default=16, ge=1, le=128)
    depth: int = Field(default=4, ge=1, le=6)
    refine_blocks: int = Field(default=2, ge=0, le=8)
    channels_per_group: int = Field(default=1, ge=1, le=64)
    self_refine: bool = False

    @field_validator("modalities")
    @classmethod
    def _ordered(cls, value: tuple[Modality, ...]) -> tuple[Modality, ...]:
        if not value:
            msg = "at least one modality is needed"
            raise ValueError(msg)
        return in_order(value)

    @model_validator(mode="after")
    def _consistent(self) -> "NetworkConfig":
        if self.base_channels % self.channels_per_group:
            msg = (
                f"channels_per_group {self.channels_per_group} must divide "
                f"base_channels {self.base_channels}"
            )
            raise ValueError(msg)
        if self.self_refine and self.architecture != "iedn":
            msg = "self_refine needs architecture 'iedn'"
            raise ValueError(msg)
        return self

    @property
    def multiple(self) -> int:
        """Rows and columns must be divisible by this number: ``2 ** depth``."""
        return 1 << self.depth


class TrainingConfig(FrozenModel):
    """Local training of one round at one site.

    Attributes:
        local_steps: optimiser steps a round.
        batch_size: scans a step; 1 takes more time a scan on a CPU (small gradients are doubled).
        learning_rate: of Adam, constant.
        loss: ``paper`` (masked L1 + Dice) or ``reference`` (L1 + RMSE + Dice).
        keep_probability: each present modality is kept with this probability at a step. The code
            published with the paper has 0.5; short runs learn faster with more.
        flip_probability: a scan is mirrored left-right with this probability at a step.
        proximal_mu: FedProx; 0 is off.
        threads: CPU threads a site; 1 gives bit-identical runs.
    """

    local_steps: int = Field(default=20, ge=1, le=100_000)
    batch_size: int = Field(default=2, ge=1, le=64)
    learning_rate: float = Field(default=1e-3, gt=0.0, le=1.0)
    loss: LossName = "paper"
    keep_probability: float = Field(default=0.75, gt=0.0, le=1.0)
    flip_probability: float = Field(default=0.0, ge=0.0, le=1.0)
    proximal_mu: float = Field(default=0.0, ge=0.0, le=100.0)
    threads: int = Field(default=1, ge=1, le=256)


class TransferConfig(FrozenModel):
    """How models and updates travel; the defaults lose nothing.

    Attributes:
        up: a site's update. Anything but ``fp32`` is quantised, with error feedback at the site.
        down: the model's change since the round before. Anything but ``fp32`` is quantised, with
            error feedback at the coordinator, which commits the model that the sites decode.
        entropy_coding: compress quantised values (Zstandard).
        hold: sites keep the model they last had on disk and are sent only what has changed.
    """

    up: UpEncoding = "fp32"
    down: DownEncoding = "fp32"
    entropy_coding: bool = True
    hold: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> "TransferConfig":
        if self.down != "fp32" and not self.hold:
            msg = (
                f"down = {self.down!r} sends the change of a model that the site holds: "
                f"it needs hold = true, or down = 'fp32'"
            )
            raise ValueError(msg)
        return self

    def check_beside_secure_aggregation(self) -> None:
        """Refuse a quantised uplink in a run with secure aggregation.

        Masked updates are uniform 64-bit integers: they can neither be quantised nor compressed.
        To be called by the validator of whatever configuration turns secure aggregation on.

        Raises:
            ValueError: says which key to change.
        """
        if self.up != "fp32":
            msg = (
                f"transfer.up = {self.up!r} cannot be used with secure aggregation: masked values "
                f"are neither quantised nor compressed. Allowed beside it: transfer.up = 'fp32'"
            )
            raise ValueError(msg)


class PrivacyDemand(FrozenModel):
    """The least that a run asks of the privacy of its sites; a site may do more, never less.

    Attributes:
        tier: of every site that trains, or a stronger one.
        noise_multiplier: at least this one, where a site trains with noise.
    """

    tier: PrivacyTier = "off"
    noise_multiplier: float = Field(default=0.0, ge=0.0, le=1000.0)


class Preset(FrozenModel):
    """A grid and the network that fits it."""

    grid: GridConfig
    network: NetworkConfig

    @model_validator(mode="after")
    def _divisible(self) -> "Preset":
        for name in ("rows", "columns"):
            size = getattr(self.grid, name)
            if size % self.network.multiple or size < 2 * self.network.multiple:
                msg = (
                    f"grid.{name} = {size} must be a multiple of {self.network.multiple} "
                    f"(2 ** depth), and at least twice it"
                )
                raise ValueError(msg)
        return self


PresetName = Literal["paper", "demo", "tiny"]

PRESETS: dict[PresetName, Preset] = {
    "paper": Preset(
        grid=GridConfig(rows=320, columns=320, spacing_mm=0.6875),
        network=NetworkConfig(base_channels=16, depth=4),
    ),
    "demo": Preset(
        grid=GridConfig(rows=64, columns=64, spacing_mm=3.4375),
        network=NetworkConfig(base_channels=8, depth=3),
    ),
    "tiny": Preset(
        grid=GridConfig(rows=32, columns=32, spacing_mm=6.875),
        network=NetworkConfig(base_channels=4, depth=2),
    ),
}
