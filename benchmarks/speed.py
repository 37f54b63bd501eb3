"""Time and memory of training and synthesis under every setting, and the share of the peak.

Prints one JSON object; with ``--table`` also writes a Markdown table.

    python benchmarks/speed.py --quick
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from speed_work import (
    MATMUL_GFLOP,
    OWN,
    SLICES,
    build_own,
    compared,
    kept_bytes,
    machine,
    matmul_peak,
    paired,
    peak_memory,
    ranged,
    step_gflop,
    summary,
    volumes,
)

from iedn.config import NetworkConfig
from iedn.model import build_network, set_recompute

PAPER_VOXELS = 320 * 320 * 19
SMALL_SHAPES = ((1, 1, 19, 32, 32), (1, 1, 19, 64, 64))
FLOAT_BYTES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="96 x 96 only, fewer rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--table", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = report(quick=arguments.quick)
    print(json.dumps(found, indent=1))
    if arguments.table:
        arguments.table.write_text(_table(found))


def report(*, quick: bool) -> dict[str, object]:
    found: dict[str, object] = {"machine": machine()}
    rounds = 3 if quick else 5
    found["settings"] = {str(n): settings(n, 96, rounds) for n in ((6,) if quick else (1, 3, 6))}
    if not quick:
        found["160"] = {"6": settings(6, 160, 2, names=("norms",))}
    found["paper_preset_estimate"] = paper_estimate()
    return found


def settings(
    num_inputs: int, rows: int, rounds: int, names: tuple[str, ...] = OWN
) -> dict[str, object]:
    """Step, inference and peak memory under each setting of ``recompute``."""
    images, cbv, mask = volumes(num_inputs, rows, rows)
    built = {name: build_own(num_inputs, name) for name in names}
    runs = {name: partial(step, images, cbv, mask) for name, (step, _) in built.items()}
    times = paired(runs | {"matmul": matmul_peak()}, rounds)
    peak = [MATMUL_GFLOP / s for s in times["matmul"]["wall_s"]]
    gflop = step_gflop(num_inputs, rows, rows)
    speeds = {name: [gflop / s for s in times[name]["wall_s"]] for name in names}
    shares = {
        name: summary([v / p for v, p in zip(values, peak, strict=True)])
        for name, values in speeds.items()
    }
    infer = paired({"norms": partial(built["norms"][1], images)}, rounds)
    size = (rows, rows)
    return {
        "work": f"{num_inputs} inputs, {rows}x{rows}x{SLICES}, batch 1, {gflop:.0f} GFLOP a step",
        "matmul_gflop_per_s": summary(peak),
        "step": compared({name: times[name] for name in names}, names[0]),
        "share_of_matmul_peak": shares,
        "infer_s": compared(infer, "norms")["norms"],
        "added_peak_gb": {name: peak_memory(name, "step", num_inputs, size) for name in names},
        "infer_added_peak_gb": peak_memory("norms", "infer", num_inputs, size),
    }


def paper_estimate() -> dict[str, object]:
    """GB at 320x320x19 with six inputs: kept tensors are proportional to the voxels."""
    found: dict[str, object] = {
        "note": "an estimate: counted on small volumes and scaled; float32, not run on a GPU",
    }
    parameters = sum(p.numel() for p in build_network(NetworkConfig(), seed=0).parameters())
    # Parameters, their gradients and Adam's two moments.
    fixed = 4 * FLOAT_BYTES * parameters
    # Working space of the backward pass: about six tensors of 32 channels at full resolution.
    passing = 6 * 32 * FLOAT_BYTES * PAPER_VOXELS
    for name in OWN:
        model = build_network(NetworkConfig(), seed=0)
        set_recompute(model, name)
        small, large = (kept_bytes(model, shape) for shape in SMALL_SHAPES)
        voxels = [torch.Size(shape).numel() for shape in SMALL_SHAPES]
        slope = (large - small) / (voxels[1] - voxels[0])
        # With "encoders" an encoder's tensors come back when the decoder's are gone: not the peak.
        kept = slope * PAPER_VOXELS
        found[name] = {
            "kept_gb": round(kept / 1e9, 2),
            "parameters_gradients_adam_gb": round(fixed / 1e9, 2),
            "passing_gb": round(passing / 1e9, 2),
            "total_gb": round((kept + fixed + passing) / 1e9, 2),
        }
    return found


def _table(found: dict[str, object]) -> str:
    parts = [
        "# Speed and memory by setting",
        "",
        f"`make bench` on {found['machine']['cpu']}, {found['machine']['threads']} threads, "
        f"torch {found['machine']['torch']}. Medians (lowest to highest); ratios are of rounds in "
        "turns. Added peak: resident memory above that after construction, in a fresh process.",
        "",
        "| work | recompute | step s | time ratio | CPU ratio | added GB | share of matmul peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for measured in (*found["settings"].values(), *found.get("160", {}).values()):
        for name, step in measured["step"].items():
            cells = [
                measured["work"],
                name,
                ranged(step["wall_s"]),
                ranged(step["wall_ratio"]),
                ranged(step["cpu_ratio"]),
                str(measured["added_peak_gb"][name]),
                ranged(measured["share_of_matmul_peak"][name]),
            ]
            parts.append(f"| {' | '.join(cells)} |")
    parts += [
        "",
        "| paper preset, estimate | kept GB | fixed | passing | total |",
        "|---|---|---|---|---|",
    ]
    for name in OWN:
        row = found["paper_preset_estimate"][name]
        parts.append(f"| {name} | {' | '.join(str(v) for v in row.values())} |")
    return "\n".join([*parts, "", found["paper_preset_estimate"]["note"].capitalize() + ".", ""])


if __name__ == "__main__":
    main()
