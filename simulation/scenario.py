"""Scenarios: a federation with its sites, on one machine, as one TOML file.

The scenario is the registry of a simulated federation: which sites there are, which role each
plays, and where its scans come from (a phantom cohort, or a manifest, e.g. one made by
``iedn-simulate split``).
"""

from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from iedn.config import FrozenModel, Preset, PresetName, TrainingConfig, TransferConfig
from iedn.errors import ConfigError
from iedn.protocol.messages import Role, RunName, SiteName
from iedn.toml import config_error_from, load_toml
from server.config import (
    AggregationConfig,
    FederationConfig,
    RoundsConfig,
    SecureAggregation,
    SiteEntry,
)
from sites.config import SplitConfig
from sites.privacy import PrivacyConfig

from .phantom import PhantomCohort


class ScenarioSite(FrozenModel):
    """One virtual site.

    Attributes:
        role: whether it trains or only evaluates.
        required: a round without it is not committed.
        phantom: the phantom cohort to generate, or
        manifest: a manifest on disk; relative to the scenario file.
        split: how its patients are divided.
        privacy: noise in its training.
    """

    role: Role = "train"
    required: bool = False
    phantom: PhantomCohort | None = None
    manifest: Path | None = None
    split: SplitConfig = SplitConfig()
    privacy: PrivacyConfig = PrivacyConfig()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.phantom is None) == (self.manifest is None):
            msg = "give either [phantom] or manifest"
            raise ValueError(msg)
        return self


class VirtualSites(FrozenModel):
    """Many training sites that share the scans of one phantom cohort.

    An exercise of scale: a patient is at several sites, so that a thousand sites need no more
    images than a few dozen patients have. What such a run learns means nothing.

    Attributes:
        count: number of sites, ``virtual-0001`` and so on.
        patients: of each site, drawn from the cohort without repetition.
        phantom: the cohort.
        split: how a site's patients are divided.
    """

    count: int = Field(ge=1, le=9999)
    patients: int = Field(ge=1, le=9999)
    phantom: PhantomCohort
    split: SplitConfig = SplitConfig()

    @model_validator(mode="after")
    def _enough_patients(self) -> Self:
        if self.patients > self.phantom.patients:
            msg = f"{self.patients} patients a site, but the cohort has {self.phantom.patients}"
            raise ValueError(msg)
        return self

    @property
    def names(self) -> list[str]:
        """Names of the sites."""
        return [f"virtual-{number:04d}" for number in range(1, self.count + 1)]


class ScenarioConfig(FrozenModel):
    """A scenario file.

    Attributes:
        name: name of the run.
        description: shown by ``iedn-simulate scenarios``.
        seed: of the training; ``--seed`` replaces it.
        cohort_seed: of the phantom cohorts; site i uses ``cohort_seed + i``.
        preset: a named grid and network, or
        custom_preset: one written out.
        training: local training.
        rounds: the round loop.
        aggregation: how updates become the next model.
        transfer: how models and updates travel.
        secure_aggregation: ``on``: the sites mask their updates; identities are made on the fly.
        flip_average: average with the left-right flipped input when evaluating.
        sites: the sites, each with a cohort of its own, by name.
        virtual: further sites, which share one cohort.
    """

    name: RunName
    description: str = ""
    seed: int = Field(default=1, ge=0, lt=2**63)
    cohort_seed: int = Field(default=1, ge=0, lt=2**31)
    preset: PresetName | None = None
    custom_preset: Preset | None = None
    training: TrainingConfig = TrainingConfig()
    rounds: RoundsConfig
    aggregation: AggregationConfig = AggregationConfig()
    transfer: TransferConfig = TransferConfig()
    secure_aggregation: SecureAggregation = "off"
    flip_average: bool = False
    sites: dict[SiteName, ScenarioSite] = Field(default_factory=dict)
    virtual: VirtualSites | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        shared = set() if self.virtual is None else set(self.virtual.names)
        if not self.sites and not shared:
            msg = "give [sites.NAME] tables, or [virtual]"
            raise ValueError(msg)
        if clash := sorted(shared & set(self.sites)):
            msg = f"{clash[0]} is also the name of a site of [virtual]"
            raise ValueError(msg)
        if self.secure_aggregation == "on":
            self.transfer.check_beside_secure_aggregation()
        return self

    def federation(self, seed: int | None = None) -> FederationConfig:
        """The coordinator's configuration of this scenario."""
        shared = self.model_dump(
            include={
                "preset",
                "custom_preset",
                "training",
                "rounds",
                "aggregation",
                "transfer",
                "secure_aggregation",
                "flip_average",
            }
        )
        entries = {
            name: SiteEntry(role=site.role, required=site.required)
            for name, site in self.sites.items()
        }
        if self.virtual is not None:
            entries |= {name: SiteEntry() for name in self.virtual.names}
        return FederationConfig(
            run=self.name,
            seed=self.seed if seed is None else seed,
            sites=entries,
            simulation=True,
            **shared,
        )


def shipped_scenarios() -> dict[str, Path]:
    """The scenarios that come with the package, by name."""
    folder = Path(str(files("simulation") / "scenarios"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_scenario(name_or_path: str) -> ScenarioConfig:
    """A shipped scenario by name, or any scenario file.

    Raises:
        ConfigError: there is none, or it is wrong (file, key, value, what is allowed).
    """
    path = Path(name_or_path)
    shipped = shipped_scenarios()
    if name_or_path in shipped:
        path = shipped[name_or_path]
    elif not path.is_file():
        names = ", ".join(shipped)
        raise ConfigError(f"no scenario {name_or_path!r}", allowed=f"{names}, or a path")
    content = _with_absolute_manifests(load_toml(path), path.absolute().parent)
    try:
        scenario = ScenarioConfig.model_validate(content)
        scenario.federation()
    except ValidationError as error:
        raise config_error_from(error, path, model=ScenarioConfig) from None
    return scenario


def _with_absolute_manifests(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    sites = content.get("sites")
    if isinstance(sites, dict):
        for site in sites.values():
            if isinstance(site, dict) and isinstance(site.get("manifest"), str):
                site["manifest"] = str(folder / site["manifest"])
    return content
