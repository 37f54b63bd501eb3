"""What a hospital decides for itself: ``site.toml``. None of it ever leaves the hospital.

Relative paths are taken from the folder of the file. Everything about the network and the
training is the coordinator's and stands in ``iedn.config``.
"""

import os
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from iedn.config import FrozenModel, Recompute
from iedn.errors import ConfigError
from iedn.toml import config_error_from, load_toml

from .privacy import PrivacyConfig

Role = Literal["train", "evaluate"]
ReleaseKind = Literal["update", "metrics", "diagnostic"]
ImageMetric = Literal["psnr_db", "ssim_percent", "mae", "bias", "nrmse", "lesion_error"]
RegistrationMode = Literal["auto", "off"]

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

SITE_FILE = "site.toml"
SITES_VARIABLE = "IEDN_SITES"
WORKER_BYTES = 2**31
"""What one scan at a time may take: deepbet, where a mask has to be made, needs most of it."""
MOST_WORKERS = 4


def _from_folder(path: Path, context: ValidationInfo) -> Path:
    folder = (context.context or {}).get("folder", Path())
    return Path(folder) / path.expanduser()


def default_workers() -> int:
    """Scans to prepare at a time: a processor and 2 GiB of memory each, 4 at the most."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    processors = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # those this process may use; not known everywhere
        processors = len(os.sched_getaffinity(0))
    return max(1, min(processors, memory // WORKER_BYTES, MOST_WORKERS))


SitePath = Annotated[Path, AfterValidator(_from_folder)]


class PolicyConfig(FrozenModel):
    """What may leave this site, and from how many patients at least.

    Attributes:
        min_patients: nothing computed from fewer patients leaves.
        min_group_sites: a parameter group is sent only if at least this many sites train it.
        max_group_share: a group in which one site has more than this part of the declared scans
            counts as trained by one site: the sum is hardly more than its update.
        reveal_small_group: send a group even if fewer sites than that train it.
        require_secure_aggregation: an update leaves only under masks that cancel in the sum of all
            sites; a coordinator that asks for it as it is, is refused.
        releases: kinds of release that are allowed: ``update`` (model deltas), ``metrics``
            (averages of image quality), ``diagnostic`` (AUC and counts of an external cohort).
        metrics: measures of image quality whose mean and standard deviation may leave.
        count_step: declared numbers of scans are rounded down to multiples of this.
        min_class_patients: a diagnostic release needs as many patients of each outcome.
        min_cell: no count of patients or scans below this leaves in a diagnostic release, neither
            as it stands nor as the difference of two releases; nor do two averages of image
            quality differ by fewer.
        review: a diagnostic release leaves only after somebody at the site has seen these very
            numbers and approved them (``iedn-client evaluate --approve``).
        max_update_norm: L2 norm above which an update is not sent; absent is no bound here.
    """

    min_patients: int = Field(default=10, ge=1)
    min_group_sites: int = Field(default=3, ge=1)
    max_group_share: float = Field(default=0.8, gt=0.0, le=1.0)
    reveal_small_group: bool = False
    require_secure_aggregation: bool = False
    releases: tuple[ReleaseKind, ...] = ("update", "metrics")
    metrics: tuple[ImageMetric, ...] = get_args(ImageMetric)
    count_step: int = Field(default=5, ge=1)
    min_class_patients: int = Field(default=10, ge=1)
    min_cell: int = Field(default=5, ge=1)
    review: bool = True
    max_update_norm: float | None = Field(default=None, gt=0.0)

    @property
    def release_step(self) -> int:
        """What the number of scans behind an evaluation is rounded down to multiples of."""
        return max(self.count_step, self.min_cell)

    @property
    def max_group_percent(self) -> float:
        """``max_group_share`` in percent, without what binary fractions add to it."""
        return round(100 * self.max_group_share, 6)


class SplitConfig(FrozenModel):
    """How patients without a split of their own in the manifest are divided.

    Attributes:
        train: fraction of the patients, like ``validation`` and ``test``; the three sum to 1.
        seed: another seed is another division; the same seed is always the same one.
    """

    train: float = Field(default=0.7, ge=0.0, le=1.0)
    validation: float = Field(default=0.15, ge=0.0, le=1.0)
    test: float = Field(default=0.15, ge=0.0, le=1.0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1.0) > 1e-6:
            msg = f"fractions train + validation + test that sum to 1 (these sum to {total:.6g})"
            raise ValueError(msg)
        return self


class PreprocessingConfig(FrozenModel):
    """How this site's files are brought onto the network's grid.

    Attributes:
        registration: ``auto`` moves a file that is clearly misaligned to the T1 and leaves all
            others alone; ``off`` takes every file where its header places it.
    """

    registration: RegistrationMode = "off"


class CoordinatorConfig(FrozenModel):
    """How to reach the coordinator.

    Attributes:
        address: ``host:port`` of the coordinator's public listener.
        ca: certificate of the authority that signed the coordinator's certificate.
        key: this site's private key.
        federations: names of the runs this site takes part in; all others are refused.
        bundles: SHA-256 of manifests that may name the work, besides the installed version's own.
        node_port: loopback port of this site's Flower node.
        heartbeat_s: seconds between two signs of life to the coordinator, 10 to 1800. A process
            that was killed is let in again after at most twice as long.
    """

    address: str = Field(pattern=r"^\S+:[0-9]{1,5}$")
    ca: SitePath | None = None
    key: SitePath | None = None
    federations: tuple[str, ...] = ()
    bundles: tuple[Sha256, ...] = ()
    node_port: int = Field(default=9095, ge=1, le=65535)
    heartbeat_s: int = Field(default=15, ge=10, le=1800)


class SiteConfig(FrozenModel):
    """One hospital's ``site.toml``.

    Attributes:
        name: lower-case letters, digits and hyphens; the same name the coordinator admitted.
        role: ``train`` takes part in training, ``evaluate`` only synthesises and evaluates.
        manifest: CSV or TSV table of the scans.
        folder: where outputs go: ``releases.jsonl``, ``synthetic/``, local reports.
        cache: preprocessed scans; may be deleted at any time.
        ledger_copy: second file of the privacy ledger, by which a restored backup is noticed;
            better on another disk than ``folder``.
        privacy: noise in training, and its budget.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads; absent means the coordinator's number.
        recompute: what training computes twice to save memory: ``norms``, or ``encoders`` for the
            least memory; ``nothing`` keeps everything. The model that results is the same.
        workers: scans that are prepared at a time; changes no result.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    role: Role = "train"
    manifest: SitePath
    folder: SitePath
    cache: SitePath = Field(default_factory=lambda fields: fields["folder"] / "cache")
    ledger_copy: SitePath = Field(
        default_factory=lambda fields: fields["folder"] / "ledger-copy.jsonl"
    )
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:[0-9]{1,2})?)$")
    threads: int | None = Field(default=None, ge=1, le=256)
    recompute: Recompute = "norms"
    workers: int = Field(default_factory=default_workers, ge=1, le=64)
    policy: PolicyConfig = PolicyConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    split: SplitConfig = SplitConfig()
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    coordinator: CoordinatorConfig | None = None


def load_site_config(path: Path | str) -> SiteConfig:
    """Read and check a site file.

    Without ``folder``, outputs go beside a file called ``site.toml``, and beside any other file
    into a folder with the file's name: two sites described in one folder must not share a
    release log.

    Raises:
        ConfigError: naming the file, the dotted key, the value that came and what is allowed.
    """
    path = Path(path).expanduser().absolute()
    content = load_toml(path)
    content.setdefault("folder", "." if path.name == SITE_FILE else path.stem)
    try:
        return SiteConfig.model_validate(content, context={"folder": path.parent})
    except ValidationError as error:
        raise config_error_from(error, path, model=SiteConfig) from error


def find_site(name_or_path: str | Path) -> Path:
    """The site file that ``--site NAME|PATH`` means.

    A text with a path separator or the suffix ``.toml`` is a path (a folder stands for the
    ``site.toml`` in it). A name is looked for as ``./kits/NAME/site.toml``,
    ``./sites/NAME.toml`` and ``$IEDN_SITES/NAME.toml``, in this order.

    Raises:
        ConfigError: nothing there; the message lists the places tried.
    """
    places = _places(str(name_or_path))
    for place in places:
        if place.is_file():
            return place
    tried = ", ".join(str(place) for place in places)
    hint = "" if os.environ.get(SITES_VARIABLE) else f" (${SITES_VARIABLE} is not set)"
    raise ConfigError(f"no site file for {str(name_or_path)!r}; looked for {tried}{hint}")


def _places(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if path.suffix == ".toml" or "/" in text or os.sep in text or text in {"", ".", ".."}:
        return [path / SITE_FILE if path.is_dir() else path]
    places = [Path("kits") / text / SITE_FILE, Path("sites") / f"{text}.toml"]
    if variable := os.environ.get(SITES_VARIABLE):
        places.append(Path(variable).expanduser() / f"{text}.toml")
    return places
