"""Table 2 as text: Markdown for people, JSON for programs; a phantom's, and said so."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client.combination_page import markdown_table
from iedn import __version__
from iedn.evaluation.combination_table import (
    METRICS,
    Difference,
    Scores,
    difference,
    network_differences,
    spread,
    table_rows,
    title,
)
from iedn.evaluation.combinations import (
    BEST_WITHOUT_CONTRAST,
    STRUCTURAL,
    WITH_CONTRAST,
    Combination,
    name_of,
)
from iedn.files import atomic_write_bytes
from iedn.modalities import Modality, in_order

ASL_ALONE: Combination = (Modality.ASL,)
WITH_ASL = in_order([*STRUCTURAL, Modality.ASL])
WHY_BEHIND = (
    "All models make the same number of steps: an encoder-decoder makes all of them for its one "
    "combination, the IEDN for all combinations at once, and each of its encoders only those "
    "at which a modality was not dropped."
)
NOTICE = "Phantom results: simulated scans of simulated lesions. They say nothing about patients."


@dataclass(frozen=True)
class Facts:
    """What a table was made by.

    Attributes:
        name: of the scenario.
        command: that makes it again.
        grid: e.g. ``48x48 at 4.5833 mm``.
        network: base channels and depth.
        steps: of every model.
        training_scans: smallest and largest number of scans a model learned from.
        held_out_scans: that all were tested on.
        seconds: wall time of every model's training.
    """

    name: str
    command: str
    grid: str
    network: str
    steps: int
    training_scans: tuple[int, int]
    held_out_scans: int
    seconds: dict[str, float]


def write_table2(folder: Path, scores: Scores, facts: Facts) -> list[Path]:
    """Write ``NAME.md`` and ``NAME.json``, e.g. ``table2-default.md``; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, content = folder / f"{facts.name}.md", folder / f"{facts.name}.json"
    atomic_write_bytes(content, json.dumps(as_json(scores, facts), indent=1).encode() + b"\n")
    atomic_write_bytes(page, markdown(scores, facts).encode())
    return [page, content]


def as_json(scores: Scores, facts: Facts) -> dict[str, Any]:
    """All numbers of the table; no row names a scan."""
    return {
        "notice": NOTICE,
        "software": f"iedn {__version__}",
        **asdict(facts),
        "rows": [asdict(row) for row in table_rows(scores)],
        "iedn_minus_encoder_decoder": [
            asdict(d) for metric in METRICS for d in network_differences(scores, metric)
        ],
        "within_iedn": [asdict(d) for d in input_differences(scores)],
        "pattern": pattern(scores),
    }


def markdown(scores: Scores, facts: Facts) -> str:
    """The table with its comparison to the paper's pattern."""
    few, many = facts.training_scans
    lines = [
        f"# Table 2 on a phantom: {facts.name}",
        "",
        f"**{NOTICE}**",
        "",
        f"`{facts.command}` (iedn {__version__}). Grid {facts.grid}, {facts.network}; "
        f"{facts.steps} steps every model, {few} to {many} training scans, {facts.held_out_scans} "
        f"held-out scans of other patients.{_duration(facts)}",
        "",
        markdown_table(scores),
        "",
        "## Beside the paper's pattern",
        "",
        *(f"- {line}" for line in pattern(scores)),
        "",
    ]
    return "\n".join(lines)


def _duration(facts: Facts) -> str:
    seconds = facts.seconds.values()
    return f" Training took {min(seconds):.0f} to {max(seconds):.0f} s a model." if seconds else ""


def input_differences(scores: Scores) -> list[Difference]:
    """What T1_C adds to the IEDN's best inputs without it, and what ASL adds to standard MRI."""
    found = []
    for more, less in ((WITH_CONTRAST, BEST_WITHOUT_CONTRAST), (WITH_ASL, STRUCTURAL)):
        if ("iedn", more) in scores and ("iedn", less) in scores:
            of_pair = (
                difference(scores["iedn", more], scores["iedn", less], metric, (more, less))
                for metric in METRICS
            )
            found += [d for d in of_pair if d is not None]
    return found


def pattern(scores: Scores) -> list[str]:
    """The paper's four findings, each with what these scans show."""
    lines = [_which_network(scores), *(_what_adds(d) for d in input_differences(scores))]
    return [line for line in (*lines, _worst(scores)) if line]


def _which_network(scores: Scores) -> str:
    """In how many combinations the IEDN is no worse; why not in all is known."""
    parts, is_behind = [], False
    for metric in METRICS[:2]:
        found = network_differences(scores, metric)
        if not found:
            return ""
        better = sum(d.value >= 0 for d in found)
        is_behind |= better < len(found)
        parts.append(f"{better} of {len(found)} by {_label(metric)}")
    counts = f"{', '.join(parts)} (paper: 17 of 17)."
    why = f" {WHY_BEHIND}" if is_behind else ""
    return f"IEDN at least as good as the encoder-decoder in {counts}{why}"


def _what_adds(found: Difference) -> str:
    added = name_of(tuple(set(found.combination) - set(found.against)))
    interval = "" if found.low is None else f" ({found.low:+.3g} to {found.high:+.3g})"
    better = "" if found.metric != "lesion_error" else ", less is better"
    return (
        f"IEDN: {added} added to {name_of(found.against)} changes {_label(found.metric)} by "
        f"{found.value:+.3g}{interval}{better}."
    )


def _worst(scores: Scores) -> str:
    """Of the combinations that both networks were tested with; the paper's is ASL alone."""
    tested = Counter(combination for _, combination in scores)
    parts = []
    for network in dict.fromkeys(architecture for architecture, _ in scores):
        means = {
            c: s.mean
            for (a, c), v in scores.items()
            if a == network and tested[c] > 1 and (s := spread(v, "ssim_percent"))
        }
        if means:
            worst = min(means, key=lambda c: means[c])
            yes = "as in the paper" if worst == ASL_ALONE else "in the paper ASL alone"
            parts.append(f"{title(network, worst)} ({yes})")
    return f"Worst by SSIM: {', '.join(parts)}." if parts else ""


def _label(metric: str) -> str:
    return {"ssim_percent": "SSIM (points)", "psnr_db": "PSNR (dB)"}.get(
        metric, "lesion rCBV error"
    )
