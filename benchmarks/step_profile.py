"""Where the CPU time of a training step goes, by operation. Prints one JSON object.

python benchmarks/step_profile.py --inputs 6 --size 96
"""

import argparse
import json
import time
from collections import Counter
from typing import Any

import torch
from speed_work import build_own, machine, volumes
from torch.utils._python_dispatch import TorchDispatchMode

SHOWN = 14


class CpuTime(TorchDispatchMode):
    """Sums the calling thread's CPU seconds of every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        started = time.thread_time()
        result = func(*args, **(kwargs or {}))
        self.seconds[str(func)] += time.thread_time() - started
        self.calls[str(func)] += 1
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=6)
    parser.add_argument("--size", type=int, default=96)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # CPU time of one thread is then all of it
    step, _ = build_own(arguments.inputs, "norms")
    tensors = volumes(arguments.inputs, arguments.size, arguments.size)
    step(*tensors)
    started = time.process_time()
    with CpuTime() as mode:
        step(*tensors)
    total = time.process_time() - started
    found = {
        "machine": machine(),
        "work": f"{arguments.inputs} inputs, {arguments.size}x{arguments.size}",
        "step_cpu_s": round(total, 3),
        "operations": [
            {"name": n, "calls": mode.calls[n], "cpu_s": round(s, 3), "share": round(s / total, 3)}
            for n, s in mode.seconds.most_common(SHOWN)
        ],
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
