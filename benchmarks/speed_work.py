"""What the speed benchmarks share: the same tensors for all, paired times, peak memory.

An *implementation* is a function ``build(num_inputs) -> step, infer``: ``step(images, cbv,
brain_mask)`` makes one optimiser step and returns its loss, ``infer(images)`` synthesises. Images
are float32 (1, 1, D, H, W) by name. An adapter file outside of this repository that defines
``build`` is an implementation too.
"""

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from iedn.config import NetworkConfig, Recompute, TrainingConfig
from iedn.losses import paper_loss
from iedn.modalities import Modality, in_order
from iedn.model import Network, build_network, set_recompute
from iedn.sample import IednBatch
from iedn.training import make_step

OWN = ("nothing", "norms", "encoders")
SLICES = 16
CPU = torch.device("cpu")

Job = tuple[Callable[..., float], Callable[..., Tensor]]


def volumes(num_inputs: int, rows: int, columns: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Images by name, CBV and brain mask; always the same."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 1, SLICES, rows, columns)
    names = [m.value for m in Modality][:num_inputs]
    images = {name: torch.rand(shape, generator=generator) / 2 for name in names}
    mask = (torch.rand(shape, generator=generator) > 0.4).float()
    return images, torch.rand(shape, generator=generator) / 2, mask


def build_own(num_inputs: int, recompute: Recompute) -> Job:
    modalities = tuple(Modality)[:num_inputs]
    model = build_network(NetworkConfig(modalities=modalities), seed=0)
    set_recompute(model, recompute)
    make = make_step(model, TrainingConfig(batch_size=1), CPU)
    weights = {m: torch.ones(1) for m in modalities}

    def step(images: dict[str, Tensor], cbv: Tensor, brain_mask: Tensor) -> float:
        named = {Modality(name): x for name, x in images.items()}
        return make(IednBatch(named, weights, brain_mask, cbv))

    @torch.inference_mode()
    def infer(images: dict[str, Tensor]) -> Tensor:
        return model({Modality(name): x for name, x in images.items()}).cbv

    return step, infer


def implementation(spec: str) -> Callable[[int], Job]:
    """Of a name in ``OWN``, or of the path of an adapter."""
    if spec in OWN:
        return lambda num_inputs: build_own(num_inputs, spec)
    module_spec = importlib.util.spec_from_file_location(Path(spec).stem, spec)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.build


# --- time ---------------------------------------------------------------------------------------


def paired(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Wall and CPU seconds of each run, taken in turns; the order is reversed every round."""
    times = {name: {"wall_s": [], "cpu_s": []} for name in runs}
    for run in runs.values():
        run()
    for number in range(rounds):
        for name in list(runs) if number % 2 == 0 else list(runs)[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            runs[name]()
            times[name]["wall_s"].append(time.perf_counter() - wall)
            times[name]["cpu_s"].append(time.process_time() - cpu)
    return times


def summary(values: list[float]) -> dict[str, float]:
    """Median and spread."""
    return {
        "median": round(statistics.median(values), 4),
        "low": round(min(values), 4),
        "high": round(max(values), 4),
    }


def ranged(values: dict[str, float]) -> str:
    """``median (low to high)``."""
    return f"{values['median']:.3g} ({values['low']:.3g} to {values['high']:.3g})"


def compared(times: dict[str, dict[str, list[float]]], base: str) -> dict[str, object]:
    """Seconds of each, and its ratio to ``base`` round by round."""
    found = {}
    for name, kinds in times.items():
        found[name] = {kind: summary(values) for kind, values in kinds.items()}
        for kind, values in kinds.items():
            ratios = [a / b for a, b in zip(values, times[base][kind], strict=True)]
            found[name][kind.replace("_s", "_ratio")] = summary(ratios)
    return found


def matmul_peak() -> Callable[[], float]:
    """A run that multiplies two matrices of 2048 x 2048; ``MATMUL_GFLOP`` of work."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    return lambda: [a @ b for _ in range(20)]


MATMUL_GFLOP = 20 * 2 * 2048**3 / 1e9


def step_gflop(num_inputs: int, rows: int, columns: int) -> float:
    """Floating-point operations of forward and backward, 1e9; proportional to the voxels."""
    model = build_network(NetworkConfig(modalities=tuple(Modality)[:num_inputs]), seed=0)
    set_recompute(model, "nothing")
    images, cbv, mask = volumes(num_inputs, 32, 32)
    named = {Modality(name): x for name, x in images.items()}
    with FlopCounterMode(display=False) as counter:
        paper_loss(model(named), cbv, mask).total.backward()
    return counter.get_total_flops() / 1e9 * rows * columns / 32**2


# --- memory -------------------------------------------------------------------------------------


def peak_memory(spec: str, job: str, num_inputs: int, size: tuple[int, int]) -> float:
    """GB of peak resident memory above that after construction, in a fresh process."""
    settings = json.dumps([spec, job, num_inputs, *size, torch.get_num_threads()])
    done = subprocess.run(  # noqa: S603 - this file, by the same Python
        [sys.executable, str(Path(__file__)), settings],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )
    return round(float(done.stdout.strip().splitlines()[-1]), 3)


def _measure_peak(settings: str) -> None:
    spec, job, num_inputs, rows, columns, threads = json.loads(settings)
    torch.set_num_threads(threads)
    images, cbv, mask = volumes(num_inputs, rows, columns)
    step, infer = implementation(spec)(num_inputs)
    before = _memory("VmRSS")
    for _ in range(2):  # the optimiser's moments exist from the second step on
        step(images, cbv, mask) if job == "step" else infer(images)
    print((_memory("VmHWM") - before) / 1e9)


def _memory(field: str) -> int:
    """Bytes of a line of this process's status; ``ru_maxrss`` would count the parent's too."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in text.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def kept_bytes(model: Network, shape: tuple[int, ...]) -> int:
    """Bytes that the backward pass of one step keeps, without parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = {m: torch.rand(shape) for m in in_order(model.config.modalities)}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(images)
        loss = paper_loss(output, torch.rand(shape), torch.ones(shape)).total
    del output, loss
    return sum(sizes.values())


def machine() -> dict[str, object]:
    """Where and with what."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_at_start": os.getloadavg()[0],
    }


if __name__ == "__main__":
    _measure_peak(sys.argv[1])
