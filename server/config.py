"""The coordinator's configuration: ``federation.toml``."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from iedn.config import (
    PRESETS,
    FrozenModel,
    Preset,
    PresetName,
    PrivacyDemand,
    TrainingConfig,
    TransferConfig,
)
from iedn.protocol.messages import Role, RunName, SiteName
from iedn.toml import config_error_from, load_toml

from .aggregation import AggregationName
from .gate import GateConfig
from .optimizers import ServerOptimizerConfig

SecureAggregation = Literal["off", "on"]
SelectionRule = Literal["mean-psnr", "worst-site-psnr", "last"]


class SiteEntry(FrozenModel):
    """A site of the federation.

    Attributes:
        role: whether it trains or only evaluates; must agree with what the site declares.
        required: a round without this site's update is not committed.
    """

    role: Role = "train"
    required: bool = False


class RoundsConfig(FrozenModel):
    """The round loop.

    Attributes:
        count: rounds to train.
        quorum: accepted updates a round needs to be committed.
        deadline_s: seconds a site has for its reply.
        join_timeout_s: seconds to wait for sites at the start of a run.
        offline_grace_s: seconds a round waits for a site that is offline and not required.
        poll_interval_s: seconds between two looks for replies.
        selection: how the best model is chosen from validation; the last round can win.
        keep: round files kept besides the best model; older ones are removed after a commit.
    """

    count: int = Field(ge=1, le=100_000)
    quorum: int = Field(ge=1, le=10_000)
    deadline_s: float = Field(default=3600.0, gt=0.0, le=7 * 86400.0)
    join_timeout_s: float = Field(default=600.0, gt=0.0, le=7 * 86400.0)
    offline_grace_s: float = Field(default=60.0, ge=0.0, le=7 * 86400.0)
    poll_interval_s: float = Field(default=1.0, gt=0.0, le=60.0)
    selection: SelectionRule = "mean-psnr"
    keep: int = Field(default=5, ge=2, le=100_000)


class AggregationConfig(FrozenModel):
    """How updates become the next model.

    Attributes:
        method: ``per-group`` averages each group over the sites that own it; ``fedavg`` is the
            plain rule, which dilutes.
        optimizer: what is done with the average.
        gate: bounds on an update.
    """

    method: AggregationName = "per-group"
    optimizer: ServerOptimizerConfig = ServerOptimizerConfig()
    gate: GateConfig = GateConfig()


class ListenConfig(FrozenModel):
    """Where the coordinator listens; paths are taken from the folder of ``federation.toml``.

    Attributes:
        host: interface of the public listener, which serves nothing but what sites need.
        port: its port, the only one that a firewall has to open.
        private_port: everything else, on the loopback interface only.
        health_port: ``grpc.health.v1`` on the loopback interface, for probes; 0 is off.
        certificate: the server's certificate (PEM) ...
        key: ... its private key ...
        ca: ... and the authority that signed it.
    """

    host: str = "0.0.0.0"  # noqa: S104  (sites come from outside)
    port: int = Field(default=9092, ge=1, le=65535)
    private_port: int = Field(default=9093, ge=1, le=65535)
    health_port: int = Field(default=9094, ge=0, le=65535)
    certificate: Path = Path("tls/server.crt")
    key: Path = Path("tls/server.key")
    ca: Path = Path("tls/ca.crt")


class FederationConfig(FrozenModel):
    """Everything the coordinator decides.

    Attributes:
        run: name of the run; also the name of its folder.
        seed: every random choice of training derives from (seed, round, site).
        preset: a named grid and network, or
        custom_preset: one written out.
        privacy: the least privacy that the run asks of its sites.
        transfer: how models and updates travel.
        sites: who takes part, by name.
        secure_aggregation: ``on``: sites mask their updates, so that only sums can be read.
        flip_average: average with the left-right flipped input when evaluating.
        simulation: the run plays all parts on one machine; every report says so.
        listen: where sites reach the coordinator; absent where no site is outside.
    """

    run: RunName
    seed: int = Field(ge=0, lt=2**63)
    preset: PresetName | None = None
    custom_preset: Preset | None = None
    training: TrainingConfig = TrainingConfig()
    privacy: PrivacyDemand = PrivacyDemand()
    rounds: RoundsConfig
    aggregation: AggregationConfig = AggregationConfig()
    transfer: TransferConfig = TransferConfig()
    sites: dict[SiteName, SiteEntry] = Field(min_length=1)
    secure_aggregation: SecureAggregation = "off"
    flip_average: bool = False
    simulation: bool = False
    listen: ListenConfig | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "FederationConfig":
        if (self.preset is None) == (self.custom_preset is None):
            msg = f"give either preset ({', '.join(PRESETS)}) or [custom_preset]"
            raise ValueError(msg)
        trainers = sum(site.role == "train" for site in self.sites.values())
        if self.rounds.quorum > trainers:
            msg = f"rounds.quorum {self.rounds.quorum} exceeds the {trainers} training sites"
            raise ValueError(msg)
        if self.secure_aggregation == "on":
            self._check_sums_suffice()
        return self

    def _check_sums_suffice(self) -> None:
        """Who sees only sums of groups cannot weigh, or judge, the update of a single site."""
        if self.aggregation.method != "per-group":
            msg = 'secure_aggregation = "on" needs aggregation.method = "per-group"'
            raise ValueError(msg)
        if self.aggregation.gate.norm_factor is not None:
            msg = 'secure_aggregation = "on" hides single norms: aggregation.gate.norm_factor'
            raise ValueError(f"{msg} has to be left out")
        self.transfer.check_beside_secure_aggregation()

    @property
    def effective_preset(self) -> Preset:
        """The grid and network of the run."""
        if self.custom_preset is not None:
            return self.custom_preset
        if self.preset is None:  # the validator has ruled this out
            msg = "no preset"
            raise ValueError(msg)
        return PRESETS[self.preset]


def load_federation(path: Path) -> FederationConfig:
    """Read and check a ``federation.toml``.

    Raises:
        ConfigError: with file, key, value that came and what is allowed.
    """
    content = load_toml(path)
    try:
        return FederationConfig.model_validate(content)
    except ValidationError as error:
        raise config_error_from(error, path, model=FederationConfig) from None
