"""``rate init``: from a site, a model file and the options to a study."""

from dataclasses import dataclass
from pathlib import Path

import torch

from iedn.console import showing_progress
from iedn.errors import ConfigError
from sites.config import SiteConfig

from ..evaluate_command import prepared
from ..model_file import load_model_file
from ..synthesis import Synthesizer
from .preparation import Split, make_study
from .study import STUDY_FILE, Design, Study


@dataclass(frozen=True)
class Choice:
    """Which scans of a quality study, and how progress is shown.

    Attributes:
        split: of the manifest.
        most: as many cases at most.
        as_json: progress as JSON lines.
    """

    split: Split
    most: int | None
    as_json: bool


def make(config: SiteConfig, model: Path, design: Design, folder: Path, choice: Choice) -> Study:
    """Prepare the site's cohort and write the study.

    Raises:
        ConfigError: there is a study already, or no usable model file.
        CohortError: no scan can be shown.
    """
    if (folder / STUDY_FILE).exists():
        raise ConfigError("there is a study already", where=str(folder), allowed="another --study")
    file = load_model_file(model)
    synthesizer = Synthesizer(file.network.to(torch.device(config.device)), file.model_hash)
    cohort = prepared(config, file.grid, as_json=choice.as_json)
    with showing_progress(as_json=choice.as_json):
        return make_study(cohort, synthesizer, design, folder, split=choice.split, most=choice.most)
