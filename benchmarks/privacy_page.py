"""The page of the benchmark of privacy: image quality and attacks, by epsilon."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from privacy_work import (
    BASE_STEPS,
    CLIP,
    DELTA,
    EPSILONS,
    FEW_PATIENTS,
    INVERSION,
    LEARNING_RATE,
    MEASURES,
    MODES,
    PATIENTS_PER_STEP,
    PUBLIC_PATIENTS,
    Settings,
    epsilons_of,
)

from iedn.files import atomic_write_bytes
from simulation.table2_page import NOTICE

Record = Mapping[str, object]
QUALITY_MODES = ("tiny", "demo", "decoder")
COMMAND = "python benchmarks/privacy_utility.py --out runs/privacy --workers 2 --table docs/results"


def write_page(folder: Path, records: Sequence[Record], settings: Settings) -> None:
    """``privacy.md`` and ``privacy.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [*_head(records, settings), *_quality(records), *_attacks(records, settings)]
    atomic_write_bytes(folder / "privacy.md", ("\n".join(lines) + "\n").encode())
    _draw(folder / "privacy.png", records)


def _head(records: Sequence[Record], settings: Settings) -> list[str]:
    trained = [r for r in records if r["mode"] in QUALITY_MODES]
    slowest = max(float(str(r["cpu_s"])) for r in records)
    return [
        "# Privacy: image quality and attacks, by epsilon",
        "",
        f"**{NOTICE}**",
        "",
        "*Not run by the tests: it takes about an hour.*",
        "",
        "```sh",
        f"{COMMAND} --patients {settings.patients} --steps {settings.steps}",
        "```",
        "",
        f"{len(records)} units, {slowest:.0f} s of CPU the longest. Phantoms with one scan each on "
        f"the grid of the `tiny` preset; one site, {trained[0]['train']} training and "
        f"{trained[0]['test']} held-out patients; {settings.steps} steps of about "
        f"{PATIENTS_PER_STEP} patients, clipping norm {CLIP:g}, delta {DELTA:g}, learning rate "
        f"{LEARNING_RATE:g}. All settings but the noise are the same for every epsilon; nothing "
        "was tuned. Epsilon `inf` is the same loop without clipping and noise.",
        "",
    ]


def _quality(records: Sequence[Record]) -> list[str]:
    rows = [
        [MODES[mode].title, epsilon, _sigma(same), *(_spread(same, m) for m in MEASURES)]
        for mode in QUALITY_MODES
        for epsilon in epsilons_of(mode)
        if (same := _same(records, mode, epsilon))
    ]
    return [
        "## Image quality",
        "",
        "Mean over seeds, and lowest to highest. *Decoder only*: the decoder of a network trained "
        f"without noise on {PUBLIC_PATIENTS} other phantoms ({BASE_STEPS} steps); epsilon 0 is "
        "that network as it was. *Network of "
        "`demo`*: 16 times the parameters of `tiny`, on the same scans.",
        "",
        *_table(["trained", "epsilon", "sigma", *MEASURES.values()], rows),
        "",
        "![Image quality against epsilon, phantom results](privacy.png)",
        "",
    ]


def _attacks(records: Sequence[Record], settings: Settings) -> list[str]:
    modes = ("tiny", "demo", "decoder", "few")
    head = ["epsilon", *(f"membership: {MODES[m].title}" for m in modes)]
    head += ["inversion: sigma", "inversion: T1WI", "inversion: ASL"]
    rows = []
    for epsilon in EPSILONS:
        rebuilt = _same(records, INVERSION, epsilon)
        cells = [_spread(_same(records, mode, epsilon), "membership") for mode in modes]
        cells += [_sigma(rebuilt), _spread(rebuilt, "T1WI"), _spread(rebuilt, "ASL")]
        rows.append([epsilon, *cells])
    return [
        "## Attacks with and without noise",
        "",
        "*Membership*: area under the ROC curve of telling training from held-out patients by "
        "their loss, by somebody who has the trained network; 0.5 tells nothing. A network that "
        f"has seen {FEW_PATIENTS} patients again and again is the attacker's best case. "
        "*Inversion*: correlation of one patient's true image with the one rebuilt from an update "
        "of one step on that patient, inside the brain, by an attacker who also has network, "
        f"measured CBV and brain mask; {settings.inversion_steps} steps; seeds are patients. The "
        "start is a flat brain, whose correlation is that of chance.",
        "",
        *_table(head, rows),
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _same(records: Sequence[Record], mode: str, epsilon: str) -> list[Record]:
    return [r for r in records if (r["mode"], r["epsilon"]) == (mode, epsilon)]


def _sigma(same: Sequence[Record]) -> str:
    return f"{float(str(same[0]['sigma'])):.2f}" if same else "-"


def _values(same: Sequence[Record], measure: str) -> list[float]:
    return [float(str(r[measure])) for r in same]


def _spread(same: Sequence[Record], measure: str) -> str:
    if not same:
        return "-"
    values = _values(same, measure)
    digits = 1 if statistics.fmean(values) > 10 else 2
    parts = (f(values) for f in (statistics.fmean, min, max))
    return "{} ({} to {})".format(*(f"{v:.{digits}f}" for v in parts))


def _draw(path: Path, records: Sequence[Record]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4))
    for axis, (measure, label) in zip(axes, MEASURES.items(), strict=True):
        for mode in QUALITY_MODES:
            found = [(i, _same(records, mode, e)) for i, e in enumerate(EPSILONS)]
            places = [i for i, same in found if same]
            values = [_values(same, measure) for _, same in found if same]
            axis.plot(places, [statistics.fmean(v) for v in values], marker="o", label=mode)
            axis.fill_between(places, _each(min, values), _each(max, values), alpha=0.2)
        axis.set_xticks(range(len(EPSILONS)), EPSILONS)
        axis.set_xlabel("epsilon")
        axis.set_ylabel(label)
    axes[0].legend()
    figure.suptitle("Phantom results, one site; mean and range over seeds", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _each(pick: Callable[[Sequence[float]], float], rows: Sequence[Sequence[float]]) -> list[float]:
    return [pick(row) for row in rows]
