"""Image quality against epsilon, on phantoms: what noise costs, and what it hides.

One simulated hospital trains the ``tiny`` network by itself, from nothing (``all``), or the
decoder of a network that a second phantom cohort has trained without noise (``decoder``). Epsilon
``inf`` is the same loop over patients without clipping and noise. All settings but the noise are
the same for every epsilon; nothing was tuned to a result. Every trained network is also attacked
by membership inference. Goes on where it was stopped.

    python benchmarks/privacy_utility.py --out runs/privacy --seeds 3 --write docs/results
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from privacy_work import PRESET, hospital

from client.accounting import noise_multiplier_for
from client.combinations import score_combination, scored_scans
from client.membership import membership_from, patient_losses
from client.privacy import NoisePlan, PatientScans, freeze, train_privately
from iedn.config import TrainingConfig
from iedn.files import append_line
from iedn.modalities import Modality
from iedn.model import Network, build_network, set_recompute
from iedn.parameters import groups_of_network
from iedn.training import train
from sites.dataset import PreparedCohort

EPSILONS = ("inf", "100", "10", "8", "3")
MODES = ("all", "decoder")
TRAIN_SHARE, PUBLIC_PATIENTS, PATIENTS_PER_STEP = 0.8, 24, 8
CLIP, DELTA, LEARNING_RATE, BASE_STEPS = 0.5, 1e-3, 3e-3, 300
NAMES = {"ssim_percent": "SSIM %", "psnr_db": "PSNR dB", "lesion_error": "lesion rCBV error"}


@dataclass(frozen=True)
class Work:
    """Cohort, base network and scans to score, the same for all units."""

    private: PreparedCohort
    base: Network | None
    numbers: list[int]
    steps: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/privacy"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--patients", type=int, default=120, help="of which 4 in 5 train")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--write", type=Path, help="folder for privacy.md and privacy.png")
    parser.add_argument("--only-write", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = arguments.out / f"results-{arguments.patients}-{arguments.steps}.jsonl"
    if not arguments.only_write:
        run(arguments, results)
    rows = read(results)
    print(json.dumps(summaries(rows), indent=1))
    if arguments.write:
        write(arguments, rows)


def run(arguments: argparse.Namespace, results: Path) -> None:
    done = {(r["mode"], r["epsilon"], r["seed"]) for r in read(results)}
    units = [
        (mode, epsilon, seed)
        for seed in range(arguments.seeds)
        for mode in arguments.modes
        for epsilon in EPSILONS
    ]
    if done.issuperset(units):
        return
    work = prepare(arguments)
    for unit in units:
        if unit not in done:
            started = time.process_time()
            row = {**dict(zip(("mode", "epsilon", "seed"), unit, strict=True)), **one(work, *unit)}
            row["cpu_s"] = round(time.process_time() - started, 1)
            append_line(results, json.dumps(row))


def prepare(arguments: argparse.Namespace) -> Work:
    out, patients = arguments.out, arguments.patients
    folder = out / f"private-{patients}"
    private = hospital(folder, patients=patients, train=TRAIN_SHARE, seed=5)
    numbers = scored_scans(private.test, [tuple(Modality)])
    if "decoder" not in arguments.modes:
        return Work(private, None, numbers, arguments.steps)
    public = hospital(out / "public", patients=PUBLIC_PATIENTS, train=1.0, seed=77)
    base = build_network(PRESET.network, seed=1)
    set_recompute(base, "norms")
    train(base, public.train, training(BASE_STEPS), seed=1)
    return Work(private, base, numbers, arguments.steps)


def training(steps: int) -> TrainingConfig:
    return TrainingConfig(local_steps=steps, learning_rate=LEARNING_RATE)


def one(work: Work, mode: str, epsilon: str, seed: int) -> dict[str, float]:
    """Train, and measure on held-out patients."""
    model = build_network(PRESET.network, seed=100 + seed)
    groups = set(groups_of_network(PRESET.network))
    if mode == "decoder":
        model, groups = copy.deepcopy(work.base), {"decoder"}
    set_recompute(model, "norms")
    freeze(model, groups, "all")
    dataset = work.private.train
    scans = PatientScans.grouped(dataset, [r.patient_id for r in dataset.records])
    plan = plan_for(epsilon, len(scans.by_patient), work.steps)
    train_privately(model, scans, (training(work.steps), plan))
    return measured(work, model)


def plan_for(epsilon: str, patients: int, steps: int) -> NoisePlan:
    rate = PATIENTS_PER_STEP / patients
    clip, noise = 1e9, 1e-30
    if epsilon != "inf":
        clip = CLIP
        noise = noise_multiplier_for(float(epsilon), DELTA, sample_rate=rate, steps=steps)
    return NoisePlan(
        clip=clip,
        noise_multiplier=noise,
        sample_rate=rate,
        patients_per_step=PATIENTS_PER_STEP,
        steps=steps,
    )


def measured(work: Work, model: Network) -> dict[str, float]:
    model.eval()
    scores = score_combination(model, work.private.test, work.numbers, tuple(Modality))
    found = {name: mean(getattr(s, name) for s in scores) for name in NAMES}
    inside = patient_losses(model, work.private.train)
    outside = patient_losses(model, work.private.test)
    area = membership_from(inside, outside).area
    return {
        **found,
        "membership_area": round(area.value, 4),
        "train": len(inside),
        "test": len(outside),
    }


def mean(values: Iterable[float | None]) -> float:
    known = [v for v in values if v is not None]
    return round(statistics.fmean(known), 4) if known else float("nan")


def read(results: Path) -> list[dict[str, object]]:
    text = results.read_text() if results.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def summaries(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Mean and range over seeds of every measure, by mode and epsilon."""
    found = []
    for mode in MODES:
        for epsilon in EPSILONS:
            same = [r for r in rows if (r["mode"], r["epsilon"]) == (mode, epsilon)]
            if same:
                measures = (*NAMES, "membership_area")
                spread = {
                    n: [f([float(r[n]) for r in same]) for f in (statistics.fmean, min, max)]
                    for n in measures
                }
                found.append({"mode": mode, "epsilon": epsilon, "seeds": len(same), **spread})
    return found


# --- what is written ----------------------------------------------------------------------------


def write(arguments: argparse.Namespace, rows: list[dict[str, object]]) -> None:
    folder, found = arguments.write, summaries(rows)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Image quality against epsilon: phantom results",
        "",
        "Made by `python benchmarks/privacy_utility.py --write docs/results "
        f"--patients {arguments.patients} --steps {arguments.steps}`. Phantoms on the `tiny` grid, "
        f"a scan each; one site, {rows[0]['train']} training and {rows[0]['test']} held-out "
        f"patients; {arguments.steps} steps, B = {PATIENTS_PER_STEP}, C = {CLIP}, "
        f"delta = {DELTA:g}, learning rate {LEARNING_RATE:g}; nothing tuned. "
        "Mean (lowest to highest) over seeds. `all`: from nothing. `decoder`: decoder of a network "
        f"trained without noise on {PUBLIC_PATIENTS} other phantoms. Membership: area under the "
        "ROC curve of telling training from held-out patients by their loss; 0.5 tells nothing.",
        "",
        "| trained | epsilon | seeds | " + " | ".join(NAMES.values()) + " | membership |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        cells = [spread(row[name]) for name in (*NAMES, "membership_area")]
        lines.append(f"| {row['mode']} | {row['epsilon']} | {row['seeds']} | {' | '.join(cells)} |")
    lines += ["", "![SSIM and PSNR against epsilon](privacy.png)", ""]
    (folder / "privacy.md").write_text("\n".join(lines))
    draw(folder / "privacy.png", found)


def spread(values: list[float]) -> str:
    return f"{values[0]:.3g} ({values[1]:.3g} to {values[2]:.3g})"


def draw(path: Path, found: list[dict[str, object]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.2))
    for axis, (name, label) in zip(axes, NAMES.items(), strict=True):
        for mode in MODES:
            same = {r["epsilon"]: r[name] for r in found if r["mode"] == mode}
            places = [i for i, e in enumerate(EPSILONS) if e in same]
            centre, low, high = zip(*(same[EPSILONS[i]] for i in places), strict=True)
            axis.plot(places, centre, marker="o", label=mode)
            axis.fill_between(places, low, high, alpha=0.2)
        axis.set_xticks(range(len(EPSILONS)), EPSILONS)
        axis.set_xlabel("epsilon")
        axis.set_ylabel(label)
    axes[0].legend()
    figure.suptitle("Phantom results, tiny grid, one site; range over seeds", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
