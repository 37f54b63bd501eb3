"""What noise costs: time and memory of a step with patient-level privacy against one without.

Both see the same scans with the same network and make one optimiser step: without noise as one
batch, with noise patient by patient. Times are taken in turns; each peak is of a process of its
own, above what stands after construction. Prints one JSON object.

    python benchmarks/privacy_cost.py --rows 96 --patients 4 --table docs/results/privacy-cost.md
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from speed_work import SLICES, _memory, compared, machine, paired, ranged, volumes

from client.privacy import NoisePlan, PatientOptimizer, private_steps, scan_loss_of
from iedn.config import NetworkConfig, TrainingConfig
from iedn.modalities import Modality
from iedn.model import Network, build_network, set_recompute
from iedn.sample import IednSample, collate
from iedn.training import make_step

CPU = torch.device("cpu")
KINDS = ("plain", "private")
TIME_GOAL, MEMORY_GOAL = 1.25, 1.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--inputs", type=int, default=3)
    parser.add_argument("--patients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset-base", type=int, default=16, help="base channels")
    parser.add_argument("--table", type=Path, help="Markdown file to write")
    parser.add_argument("--peak-of", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak_of:
        print(peak(arguments.peak_of, arguments))
        return
    found = report(arguments)
    print(json.dumps(found, indent=1))
    if arguments.table:
        arguments.table.write_text(_table(found))


def report(arguments: argparse.Namespace) -> dict[str, object]:
    steps = {kind: build(kind, arguments) for kind in KINDS}
    times = compared(paired(steps, arguments.rounds), "plain")
    peaks = {kind: peak_in_a_process(kind) for kind in KINDS}
    time_ratio = times["private"]["wall_ratio"]["median"]
    memory_ratio = round(peaks["private"] / peaks["plain"], 3)
    return {
        "machine": machine(),
        "work": f"{arguments.patients} patients with a scan each, {arguments.inputs} inputs, "
        f"{arguments.rows}x{arguments.rows}x{SLICES}, base {arguments.preset_base}, one step",
        "parameters": sum(p.numel() for p in network(arguments).parameters()),
        "step": times,
        "added_peak_gb": peaks,
        "time_ratio": {"median": time_ratio, "goal": TIME_GOAL, "met": time_ratio <= TIME_GOAL},
        "memory_ratio": {
            "value": memory_ratio,
            "goal": MEMORY_GOAL,
            "met": memory_ratio <= MEMORY_GOAL,
        },
    }


def network(arguments: argparse.Namespace) -> Network:
    config = NetworkConfig(
        modalities=tuple(Modality)[: arguments.inputs], base_channels=arguments.preset_base
    )
    model = build_network(config, seed=0)
    set_recompute(model, "norms")
    return model.train()


def scans(arguments: argparse.Namespace) -> list[IednSample]:
    images, cbv, _ = volumes(arguments.inputs, arguments.rows, arguments.rows)
    inside = torch.ones_like(cbv)
    one = IednSample({Modality(n): x[0] for n, x in images.items()}, inside[0], cbv[0])
    return [one] * arguments.patients


def build(kind: str, arguments: argparse.Namespace) -> Callable[[], object]:
    """A function that makes one step."""
    model, samples = network(arguments), scans(arguments)
    config = TrainingConfig(keep_probability=1.0)
    if kind == "plain":
        step, batch = make_step(model, config, CPU), collate(samples, model.config.multiple)
        return lambda: step(batch)
    plan = NoisePlan(
        clip=1.0,
        noise_multiplier=1.4,
        sample_rate=1.0,
        patients_per_step=arguments.patients,
        steps=1,
    )
    adam = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    optimizer = PatientOptimizer(adam, plan)
    loss = scan_loss_of(model, samples, config)
    patients = [[number] for number in range(arguments.patients)]
    return lambda: list(private_steps(optimizer, patients, loss, plan))


def peak(kind: str, arguments: argparse.Namespace) -> float:
    step = build(kind, arguments)
    before = _memory("VmRSS")
    for _ in range(2):  # the optimiser's moments exist from the second step on
        step()
    return round((_memory("VmHWM") - before) / 1e9, 3)


def peak_in_a_process(kind: str) -> float:
    command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--peak-of", kind]
    root = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(  # noqa: S603 - this file, by the same Python
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": paths}
    )
    return float(done.stdout.strip().splitlines()[-1])


def _table(found: dict[str, object]) -> str:
    names = {"plain": "one batch, no noise", "private": "patient by patient, with noise"}
    rows = [
        [title, ranged(found["step"][kind]["wall_s"]), str(found["added_peak_gb"][kind])]
        for kind, title in names.items()
    ]
    time, memory = found["time_ratio"], found["memory_ratio"]
    rows += [
        ["ratio", str(time["median"]), str(memory["value"])],
        ["goal", f"<= {time['goal']}: {met(time)}", f"<= {memory['goal']}: {met(memory)}"],
    ]
    parts = [
        "# What noise in training costs",
        "",
        f"`python benchmarks/privacy_cost.py --table docs/results/privacy-cost.md` on "
        f"{found['machine']['cpu']}, one thread, torch {found['machine']['torch']}.",
        f"{found['work'].capitalize()}, {found['parameters'] / 1e6:.1f} million parameters. "
        "Median (lowest to highest) of turns; the ratio is the median over turns. Added peak: "
        "resident memory above that after construction, in a fresh process.",
        "",
        "| step | seconds | added peak GB |",
        "|---|---|---|",
        *(f"| {' | '.join(cells)} |" for cells in rows),
    ]
    return "\n".join([*parts, ""])


def met(ratio: dict[str, object]) -> str:
    return "met" if ratio["met"] else "**missed**"


if __name__ == "__main__":
    main()
