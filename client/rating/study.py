"""A reader study on disk: ``study.json``, and the volumes that it shows.

Nothing of it leaves the site. What serves the page needs this module, but no torch.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from iedn.config import FrozenModel
from iedn.errors import ConfigError
from iedn.modalities import TARGET, Modality

Kind = Literal["quality", "diagnosis"]
Mode = Literal["blind", "similarity"]
Decision = Literal["discussion", "adjudicator"]

STUDIES = "readers"
STUDY_FILE = "study.json"
VOLUMES = "volumes"
SYNTHETIC = "sCBV"
MAPS = (TARGET, SYNTHETIC, Modality.ASL.value)
"""Perfusion maps, shown in the study's one fixed window; everything else in its own."""
_NAME = r"^[a-z0-9][a-z0-9-]{0,30}$"


class Series(FrozenModel):
    """One volume of a case.

    Attributes:
        file: in the folder of volumes; its name tells nothing.
        window: (least, most) of the grey or colour scale; brain mean 1.
        sha256: of the file.
    """

    file: str = Field(pattern=r"^[0-9a-f]{16}\.nii$")
    window: tuple[float, float]
    sha256: str


class Case(FrozenModel):
    """One scan to judge.

    Attributes:
        number: from 0.
        key: ``patient_id/scan_id``; never on the page.
        start_mm: (x, y, z), RAS; middle of the slice with most brain, where reading begins.
        series: ``CBV``, ``sCBV`` and modalities.
    """

    number: int = Field(ge=0)
    key: str
    start_mm: tuple[float, float, float]
    series: dict[str, Series]


class Design(FrozenModel):
    """What is asked of the readers.

    Attributes:
        name: of the study and its folder.
        kind: ``quality`` scores maps; ``diagnosis`` tells recurrence from treatment response.
        mode: of a quality study: ``blind`` (two maps, it is hidden which one is synthetic) or
            ``similarity`` (synthetic beside measured).
        decision: who decides divergent scores: both readers in ``discussion``, or an
            ``adjudicator``. A diagnosis is always adjudicated.
        washout_days: between a reader's two sessions of a diagnosis study.
        window_max: upper end of the maps' window, as a multiple of the brain's mean.
        seed: of every random order.
    """

    name: str = Field(pattern=_NAME)
    kind: Kind = "quality"
    mode: Mode = "blind"
    decision: Decision = "discussion"
    washout_days: float = Field(default=28.0, ge=0.0, le=366.0)
    window_max: float = Field(default=4.0, gt=0.0, le=100.0)
    seed: int = Field(ge=0)


def design_of(**values: Any) -> Design:
    """A design from options of the command line.

    Raises:
        ConfigError: naming the option that is wrong.
    """
    try:
        return Design(**values)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--study" if first["loc"] == ("name",) else f"--{first['loc'][0]}"
        raise ConfigError(first["msg"], where=option.replace("_", "-")) from error


class Study(FrozenModel):
    """``study.json``.

    Attributes:
        design: what is asked.
        model_hash: of the model whose maps are judged.
        created: UTC.
        research_use: what must be said beside every synthetic map.
        secret: makes the page's names of cases unguessable.
        cases: in the manifest's order.
    """

    design: Design
    model_hash: str
    created: str
    research_use: str
    secret: str
    cases: tuple[Case, ...] = Field(min_length=1)


def load_study(folder: Path) -> Study:
    """Read a study.

    Raises:
        ConfigError: there is none, or it was changed by hand into something else.
    """
    path = folder / STUDY_FILE
    try:
        return Study.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            "no reader study here; make one with `rate init`", where=str(path)
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(first["msg"], where=f"{path}: {place}") from error


def find_study(site_folder: Path, name: str | None) -> Path:
    """Folder of the study of this name, or of the only one.

    Raises:
        ConfigError: none, or several and none named.
    """
    parent = site_folder / STUDIES
    if name is not None:
        return parent / name
    found = sorted(path.parent for path in parent.glob(f"*/{STUDY_FILE}"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError("no reader study here; make one with `rate init`", where=str(parent))
    names = ", ".join(path.name for path in found)
    raise ConfigError("several studies", where=str(parent), allowed=f"--study with one of {names}")


def read_volume_bytes(folder: Path, series: Series) -> bytes:
    """A volume's file.

    Raises:
        ConfigError: it is gone, or is not what was written.
    """
    path = folder / VOLUMES / series.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if hashlib.sha256(content).hexdigest() != series.sha256:
        raise ConfigError("is not the volume that the study was made with", where=str(path))
    return content


def as_json(study: Study, folder: Path) -> str:
    """What ``rate init --json`` prints."""
    design = study.design.model_dump()
    return json.dumps({"folder": str(folder), "cases": len(study.cases), **design}, indent=2)
