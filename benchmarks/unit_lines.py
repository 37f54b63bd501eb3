"""What benchmarks that go on after a stop share: finished units are lines of a file."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from iedn.files import complete_lines

Unit = TypeVar("Unit")
Record = dict[str, Any]


def finished(path: Path) -> list[Record]:
    """Records of the units that are done; without a line that a kill has cut off."""
    content = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in complete_lines(content).splitlines() if line]


def in_processes(
    run: Callable[[Unit], Record], units: Sequence[Unit], workers: int
) -> Iterator[Record]:
    """Records in the order they are finished; one thread each."""
    context = get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        jobs = [pool.submit(run, unit) for unit in units]
        yield from (job.result() for job in as_completed(jobs))
