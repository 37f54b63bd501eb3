"""Other implementations of the same job against this one, in turns, on the same tensors.

An adapter is a Python file outside of this repository that defines
``build(num_inputs) -> step, infer``; see ``speed_work.py``. Prints one JSON object; with
``--table`` also writes a Markdown table.

    python benchmarks/against.py --other /elsewhere/adapter.py --inputs 6 --quick
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch
from speed_work import (
    MATMUL_GFLOP,
    SLICES,
    compared,
    implementation,
    machine,
    matmul_peak,
    paired,
    peak_memory,
    ranged,
    step_gflop,
    summary,
    volumes,
)

OURS = ("norms", "encoders")
BOX = "norms on the brain box"
BOX_OF_320 = (256, 224)
"""Rows and columns of a box around a brain in a slab of 320 x 320 at 0.6875 mm: 0.56 of it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", action="append", required=True, help="an adapter; may repeat")
    parser.add_argument("--inputs", type=int, nargs="+", default=[1, 3, 6])
    parser.add_argument("--size", type=int, default=96, help="rows and columns, of 32 k")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--no-memory", action="store_true", help="no peak memory")
    parser.add_argument("--table", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found: dict[str, object] = {"machine": machine(), "work": {}}
    for num_inputs in arguments.inputs:
        rounds = 1 if arguments.quick else arguments.rounds
        measured = measure(arguments.other, num_inputs, arguments.size, rounds)
        if not arguments.no_memory:
            measured |= memory(arguments.other, num_inputs, arguments.size)
        found["work"][f"{num_inputs} inputs"] = measured
        print(json.dumps({num_inputs: measured}), file=sys.stderr, flush=True)
    print(json.dumps(found, indent=1))
    if arguments.table:
        arguments.table.write_text(_table(found, arguments.size))


def measure(others: list[str], num_inputs: int, size: int, rounds: int) -> dict[str, object]:
    """Step and inference, each also as a ratio to each other implementation."""
    images, cbv, mask = volumes(num_inputs, size, size)
    built = {_name(spec): implementation(spec)(num_inputs) for spec in (*others, *OURS)}
    steps = {name: partial(step, images, cbv, mask) for name, (step, _) in built.items()}
    box = volumes(num_inputs, *_box(size))
    steps[BOX] = partial(built[OURS[0]][0], *box)
    infers = {n: partial(infer, images) for n, (_, infer) in built.items() if n != OURS[1]}
    step_times = paired(steps | {"matmul": matmul_peak()}, rounds)
    infer_times = paired(infers, rounds)
    peak = [MATMUL_GFLOP / s for s in step_times.pop("matmul")["wall_s"]]
    gflop = step_gflop(num_inputs, size, size)
    own = step_times[OURS[0]]["wall_s"]
    return {
        "volume": f"{size}x{size}x{SLICES}, box {_box(size)[0]}x{_box(size)[1]}",
        "step": {_name(o): compared(step_times, _name(o)) for o in others},
        "infer": {_name(o): compared(infer_times, _name(o)) for o in others},
        "matmul_gflop_per_s": summary(peak),
        "own_share_of_matmul_peak": summary(
            [gflop / s / p for s, p in zip(own, peak, strict=True)]
        ),
    }


def memory(others: list[str], num_inputs: int, size: int) -> dict[str, object]:
    """Added peak in GB, each in a process of its own."""
    specs, square = (*others, *OURS), (size, size)
    step = {_name(s): peak_memory(s, "step", num_inputs, square) for s in specs}
    step[BOX] = peak_memory(OURS[0], "step", num_inputs, _box(size))
    infers = (*others, OURS[0])
    infer = {_name(s): peak_memory(s, "infer", num_inputs, square) for s in infers}
    return {"step_added_peak_gb": step, "infer_added_peak_gb": infer}


def _box(size: int) -> tuple[int, int]:
    """The same share of a slab as ``BOX_OF_320``, in multiples of 16."""
    rows, columns = (max(round(side * size / 320 / 16), 2) * 16 for side in BOX_OF_320)
    return rows, columns


def _name(spec: str) -> str:
    return Path(spec).stem


def _table(found: dict[str, object], size: int) -> str:
    parts = [
        "# Against other implementations",
        "",
        f"`benchmarks/against.py` at {size}x{size}x{SLICES} on {found['machine']['cpu']}, "
        f"{found['machine']['threads']} threads, torch {found['machine']['torch']}. Ratios of "
        "rounds in turns: median (lowest to highest).",
        "",
        "| inputs | this, setting | other | job | time ratio | CPU ratio | added memory ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for inputs, measured in found["work"].items():
        for job in ("step", "infer"):
            gb = measured.get(f"{job}_added_peak_gb", {})
            for other, rows in measured[job].items():
                for name in [n for n in rows if n in (*OURS, BOX)]:
                    ratio = f"{gb[name] / gb[other]:.2f}" if name in gb else ""
                    cells = [inputs, name, other, job, ranged(rows[name]["wall_ratio"])]
                    cells += [ranged(rows[name]["cpu_ratio"]), ratio]
                    parts.append(f"| {' | '.join(cells)} |")
    return "\n".join([*parts, ""])


if __name__ == "__main__":
    main()
