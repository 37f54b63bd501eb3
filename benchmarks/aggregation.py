"""How fast the coordinator sums updates, beside how fast this machine copies memory.

One thread. In every round the steps are taken in turns: a plain copy of as many bytes as the sum
has (at most 256 MiB); adding one update to the exact sum; the same by the plain formula, which
makes temporaries of a tensor's size; the gate's checks; the end of the round; the hash. Bytes moved
are: of a copy, those read and those written; of an addition, those read of the deltas and those
read and written of the sum. Prints one JSON object with medians, and ratios round by round.

    python benchmarks/aggregation.py --model-mb 150 700 --rounds 7
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from speed_work import machine, summary

from iedn.config import NetworkConfig
from iedn.model import empty_network
from iedn.parameters import flatten, shapes_of_network, state_hash
from iedn.protocol.checks import MAX_ABS_DELTA, Shapes, check_tensors, update_norm
from server.aggregation import Float32Groups, StreamingSum, Update
from server.optimizers import ServerOptimizerConfig, advance

MEGABYTE = 10**6
WEIGHT = 35
MOST_COPIED = 2**25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-mb", type=int, nargs="+", default=[150, 700])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = [measure(megabytes, arguments.rounds) for megabytes in arguments.model_mb]
    print(json.dumps({"machine": machine(), "rounds": arguments.rounds, "cases": cases}, indent=1))


def shapes_of_size(megabytes: int) -> Shapes:
    """Tensors of the paper's network, as wide as it takes for about so many megabytes."""
    known = shapes_of_network(empty_network(NetworkConfig(base_channels=16)))
    ratio = megabytes * MEGABYTE / (4 * num_elements(known))  # grows with the square of the width
    width = round(16 * ratio**0.5)
    return shapes_of_network(empty_network(NetworkConfig(base_channels=width)))


def num_elements(shapes: Shapes) -> int:
    return sum(int(np.prod(s)) for tensors in shapes.values() for s in tensors.values())


def made(shapes: Shapes, scale: float) -> Float32Groups:
    generator = np.random.default_rng(0)
    return {
        g: {n: scale * generator.standard_normal(s, np.float32) for n, s in tensors.items()}
        for g, tensors in shapes.items()
    }


def measure(megabytes: int, rounds: int) -> dict[str, object]:
    shapes = shapes_of_size(megabytes)
    size = num_elements(shapes)
    model, deltas = made(shapes, 0.05), made(shapes, 1e-3)
    update = Update(deltas, dict.fromkeys(deltas, WEIGHT), WEIGHT)
    plain = {n: np.zeros(d.shape, np.int64) for n, d in flatten(deltas).items()}
    copied = min(size, MOST_COPIED)
    source, target = np.ones(copied, np.int64), np.ones(copied, np.int64)
    total = StreamingSum(shapes)

    steps: dict[str, tuple[int, Callable[[], object]]] = {
        "copy": (16 * copied, lambda: np.copyto(target, source)),
        "add": (20 * size, lambda: total.add(update)),
        "add_by_the_plain_formula": (20 * size, lambda: add_plainly(plain, deltas)),
        "gate": (12 * size, lambda: gate(deltas, shapes)),
        "hash": (4 * size, lambda: state_hash(flatten(model))),
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*steps, "end_of_round")}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in seconds}
    for number in range(rounds + 1):
        total = StreamingSum(shapes)
        total.add(update)  # touches its memory
        for name in list(steps) if number % 2 == 0 else list(steps)[::-1]:
            wall, cpu = timed(steps[name][1])
            seconds[name].append(wall)
            cpu_seconds[name].append(cpu)
        ending, _ = timed(lambda: advance(model, total.drain(), {}, ServerOptimizerConfig()))  # noqa: B023
        seconds["end_of_round"].append(ending)
    seconds = {name: values[1:] for name, values in seconds.items()}  # the first touches memory
    return {
        "model_mb": round(4 * size / MEGABYTE, 1),
        "tensors": len(plain),
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "gb_per_s": {
            name: summary([moved / s / 1e9 for s in seconds[name]])
            for name, (moved, _) in steps.items()
        },
        "add_over_copy_bandwidth": summary(
            [
                (20 * size / add_s) / (16 * copied / copy_s)
                for add_s, copy_s in zip(seconds["add"], seconds["copy"], strict=True)
            ]
        ),
        "add_over_copy_bandwidth_by_cpu_seconds": summary(
            [
                (20 * size / add_s) / (16 * copied / copy_s)
                for add_s, copy_s in zip(
                    cpu_seconds["add"][1:], cpu_seconds["copy"][1:], strict=True
                )
            ]
        ),
        "plain_formula_over_add": summary(
            [
                plainly / add
                for plainly, add in zip(
                    seconds["add_by_the_plain_formula"], seconds["add"], strict=True
                )
            ]
        ),
    }


def add_plainly(total: dict[str, np.ndarray], deltas: Float32Groups) -> None:
    for name, delta in flatten(deltas).items():
        scaled = np.multiply(delta, 2.0**30, dtype=np.float64)
        total[name] += np.rint(scaled, out=scaled).astype(np.int64) * np.int64(WEIGHT)


def gate(deltas: Float32Groups, shapes: Shapes) -> None:
    check_tensors(deltas, shapes, max_abs=MAX_ABS_DELTA)
    update_norm(deltas)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds, and CPU seconds of this thread."""
    wall, cpu = time.perf_counter(), time.thread_time()
    work()
    return time.perf_counter() - wall, time.thread_time() - cpu


if __name__ == "__main__":
    main()
