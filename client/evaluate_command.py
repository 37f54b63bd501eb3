"""What ``iedn-client evaluate`` does, by what the maps are held against; each returns its text."""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from iedn import progress
from iedn.config import Architecture, GridConfig
from iedn.console import showing_progress
from iedn.errors import CohortError, ConfigError, PolicyError
from iedn.evaluation.combination_table import ScanScore, network_differences, table_rows
from iedn.evaluation.combinations import Combination, combinations_of, name_of
from iedn.evaluation.results import summary_of
from iedn.files import atomic_write_bytes
from sites.config import SiteConfig
from sites.dataset import PreparedCohort, ScanDataset, prepare_cohort
from sites.egress import coarsen

from .combination_page import markdown_table
from .combinations import Unit, UnitFolder, identity_of, score_combination, scored_scans
from .diagnostic import evaluate_external
from .diagnostic_value import DiagnosticResult
from .evaluation import METRICS, evaluate_scans
from .model_file import ModelFile, load_model_file
from .session import SiteSession
from .table3_page import table3_markdown, would_leave

UnitKey = tuple[Architecture, Combination]

COMBINATIONS, TABLE3 = "combinations", "table3"


@dataclass(frozen=True)
class CbvOptions:
    """Of an evaluation against measured CBV; ``baselines`` is a folder of model files."""

    split: str
    baselines: Path | None
    flip_average: bool
    as_json: bool


@dataclass(frozen=True)
class LabelOptions:
    """Of an evaluation against outcomes."""

    readers: Path | None
    approve: bool
    flip_average: bool
    as_json: bool


def prepared(config: SiteConfig, grid: GridConfig, *, as_json: bool) -> PreparedCohort:
    """The site's cohort, with progress shown."""
    with showing_progress(as_json=as_json):
        reporter = progress.reporter("preparing scans")
        return prepare_cohort(config, grid, progress=reporter, workers=config.workers)


def evaluate_split(config: SiteConfig, model: Path, options: CbvOptions) -> str:
    """Mean image quality on a held-out split."""
    file = load_model_file(model)
    dataset = _held_out(prepared(config, file.grid, as_json=options.as_json), options.split)
    with showing_progress(as_json=options.as_json):
        rows = evaluate_scans(
            file.network,
            dataset,
            task="evaluating",
            flip_average=options.flip_average,
            device=torch.device(config.device),
        )
    summary = summary_of([row.values for row in rows])
    if options.as_json:
        content = {"split": options.split, "scans": len(rows), **summary}
        return json.dumps(content, indent=2)
    lines = []
    for name in (*METRICS, "lesion_error"):
        number = sum(math.isfinite(row.values.get(name, math.nan)) for row in rows)
        if number:
            of = f"(mean of {number} {options.split} scans)"
            lines.append(f"{name:14} {summary[f'{name}_mean']:.4f}  {of}")
    return "\n".join(lines)


def evaluate_combinations(config: SiteConfig, model: Path, wanted: str, options: CbvOptions) -> str:
    """Image quality with every combination of inputs; goes on after a stop."""
    combinations = combinations_of(wanted)
    files = _files_by_unit(load_model_file(model), combinations, options.baselines)
    main = next(iter(files.values()))
    cohort = prepared(config, main.grid, as_json=options.as_json)
    dataset = _held_out(cohort, options.split)
    numbers = scored_scans(dataset, combinations)
    if not numbers:
        every = name_of(tuple({m for c in combinations for m in c}))
        raise CohortError(
            f"none of {len(dataset)} held-out scans has measured CBV and all of {every}; "
            "combinations are compared on the same scans"
        )
    with showing_progress(as_json=options.as_json):
        scores = _scored(config, dataset, numbers, files, flip_average=options.flip_average)
    return _combinations_text(config, scores, options)


def evaluate_labels(config: SiteConfig, model: Path, options: LabelOptions) -> str:
    """Table 3 of an external cohort, and what would leave of it."""
    file = load_model_file(model)
    cohort = prepared(config, file.grid, as_json=options.as_json)
    with showing_progress(as_json=options.as_json):
        result = evaluate_external(
            config,
            cohort,
            file.network,
            model_hash=file.model_hash,
            flip_average=options.flip_average,
            readers=options.readers,
        )
    page = table3_markdown(result)
    atomic_write_bytes(config.folder / f"{TABLE3}.md", page.encode() + b"\n", mode=0o600)
    refusal = _review(config, result, approve=options.approve)
    if options.approve and refusal is not None:
        raise PolicyError(f"not approved: {refusal}. The table is in {config.folder / TABLE3}.md")
    if options.as_json:
        return json.dumps(_as_json(result, refusal, approved=options.approve), indent=2)
    return page + "\n" + _what_leaves(config, result, refusal, approved=options.approve)


def _review(config: SiteConfig, result: DiagnosticResult, *, approve: bool) -> str | None:
    """Why these numbers would not leave; None if they would. Approves them if asked to."""
    egress = SiteSession(config).egress
    try:
        if approve:
            egress.approve(result.release)
        else:
            egress.preview(result.release)
    except PolicyError as error:
        return str(error)
    return None


def _what_leaves(
    config: SiteConfig, result: DiagnosticResult, refusal: str | None, *, approved: bool
) -> str:
    if refusal is not None:
        return f"\nNothing of this would leave: {refusal}."
    release = result.release
    numbers = would_leave(
        release.paired_areas, coarsen(release.num_scans, config.policy.release_step)
    )
    state = (
        "Approved: these numbers leave when the coordinator asks for this model:"
        if approved
        else "Nothing has left. These numbers would leave, once approved with --approve:"
    )
    return f"\n{state}\n\n{numbers}"


def _as_json(result: DiagnosticResult, refusal: str | None, *, approved: bool) -> dict[str, object]:
    release = result.release
    return {
        "flow": asdict(result.flow),
        "areas": {name: asdict(area) for name, area in result.areas.items()},
        "comparisons": {f"{a} - {b}": asdict(c) for (a, b), c in result.comparisons.items()},
        "readers": None if result.readers is None else asdict(result.readers),
        "notes": list(result.notes),
        "would_leave": None
        if refusal
        else {name: areas.model_dump() for name, areas in release.paired_areas.items()},
        "refused": refusal,
        "approved": approved and refusal is None,
    }


def _scored(
    config: SiteConfig,
    dataset: ScanDataset,
    numbers: list[int],
    files: dict[UnitKey, ModelFile],
    *,
    flip_average: bool,
) -> dict[UnitKey, list[ScanScore]]:
    """Scores of every unit; those that are on disk already are taken from there."""
    folder = UnitFolder(config.folder / COMBINATIONS)
    keys = [dataset.keys[number] for number in numbers]
    scores: dict[UnitKey, list[ScanScore]] = {}
    for (architecture, combination), file in files.items():
        identity = identity_of(file.model_hash, str(flip_average), *keys)
        unit = Unit(architecture, combination, identity)
        found = folder.load(unit)
        if found is None:
            started = time.monotonic()
            found = score_combination(
                file.network,
                dataset,
                numbers,
                combination,
                flip_average=flip_average,
                device=torch.device(config.device),
            )
            folder.store(unit, found, time.monotonic() - started)
        scores[architecture, combination] = found
        progress.report("combinations", len(scores), len(files))
    return scores


def _held_out(cohort: PreparedCohort, split: str) -> ScanDataset:
    return cohort.validation if split == "validation" else cohort.test


def _files_by_unit(
    main: ModelFile, combinations: tuple[Combination, ...], baselines: Path | None
) -> dict[UnitKey, ModelFile]:
    """The model of every unit: the IEDN for all, an encoder-decoder for its own combination."""
    if main.config.architecture != "iedn":
        raise ConfigError(
            f"the model is of architecture {main.config.architecture!r}",
            where="--model",
            allowed="'iedn'; encoder-decoders go into --baselines",
        )
    unknown = {m for c in combinations for m in c} - set(main.config.modalities)
    if unknown:
        raise ConfigError(
            f"the model does not know {', '.join(sorted(unknown))}",
            where="--combinations",
            allowed=", ".join(main.config.modalities),
        )
    found: dict[UnitKey, ModelFile] = {("iedn", combination): main for combination in combinations}
    if baselines is None:
        return found
    files = [load_model_file(path) for path in sorted(baselines.glob("encoder-decoder*"))]
    own = {file.config.modalities: file for file in files if file.grid == main.grid}
    missing = [name_of(c) for c in combinations if c not in own]
    if missing:
        raise ConfigError(
            f"no encoder-decoder of the model's grid for {', '.join(missing)}",
            where=f"--baselines {baselines}",
            allowed="one model file a combination, e.g. the models folder of iedn-simulate table2",
        )
    for combination in combinations:
        found["encoder-decoder", combination] = own[combination]
    return found


def _combinations_text(
    config: SiteConfig, scores: dict[UnitKey, list[ScanScore]], options: CbvOptions
) -> str:
    page = markdown_table(scores)
    atomic_write_bytes(config.folder / f"{COMBINATIONS}.md", page.encode() + b"\n", mode=0o600)
    if not options.as_json:
        return page
    content = {
        "split": options.split,
        "rows": [asdict(row) for row in table_rows(scores)],
        "iedn_minus_encoder_decoder": [
            asdict(d)
            for metric in ("ssim_percent", "psnr_db", "lesion_error")
            for d in network_differences(scores, metric)
        ],
    }
    return json.dumps(content, indent=2)
