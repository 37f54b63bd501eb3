"""What federated training is worth for synthesis with missing modalities, on a phantom.

Trains and tests every method, a unit at a time; finished units are lines of ``units.jsonl`` and are
not done again. With all units there, or ``--table``, writes the page and its JSON.

    python benchmarks/federated_synthesis.py --out runs/federated-synthesis --workers 2
    python benchmarks/federated_synthesis.py --out runs/federated-synthesis --table docs/results
"""

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from federated_units import Unit, core_units, exploratory_units, tuned_units
from federated_work import run_unit
from unit_lines import finished, in_processes

from iedn import __version__
from iedn.files import append_line

SCENARIO = Path(__file__).with_name("federated_synthesis.toml")
UNITS, TRIALS = "units.jsonl", "trials.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/federated-synthesis"))
    parser.add_argument("--scenario", type=Path, default=SCENARIO)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--exploratory", action="store_true", help="these units too")
    parser.add_argument("--tuned", action="store_true", help="the best of the trials too")
    parser.add_argument("--workers", type=int, default=1, help="units at a time")
    parser.add_argument("--shard", default="0/1", help="this process's share of the units, 0/2")
    parser.add_argument("--units", type=int, help="stop after so many; go on by the same command")
    parser.add_argument("--table", type=Path, help="folder of the page; nothing is trained")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    records = finished(arguments.out / UNITS)
    if arguments.table:
        from federated_page import write_page

        trials = finished(arguments.out / TRIALS)
        write_page(arguments.table, records, trials, arguments.scenario)
        return
    units = wanted(arguments, {record["name"] for record in records})
    for number, record in enumerate(made(units, arguments), start=1):
        append_line(arguments.out / UNITS, json.dumps(record))
        line = f"{number} of {len(units)}: {record['name']}, {record['cpu_s']} s of CPU"
        print(line, file=sys.stderr, flush=True)


def wanted(arguments: argparse.Namespace, done: set[str]) -> list[Unit]:
    units = core_units(arguments.seeds)
    if arguments.tuned:
        units += tuned_units(arguments.seeds)
    if arguments.exploratory:
        units += exploratory_units()
    share, of = (int(part) for part in arguments.shard.split("/"))
    left = [unit for unit in units[share::of] if unit.name not in done]
    return left[: arguments.units]


def made(units: list[Unit], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Records in the order they are finished."""
    run = partial(complete_record, out=arguments.out, scenario=arguments.scenario)
    if arguments.workers == 1:
        return map(run, units)
    return in_processes(run, units, arguments.workers)


def complete_record(unit: Unit, out: Path, scenario: Path) -> dict[str, Any]:
    return {
        "name": unit.name,
        **run_unit(unit, out, scenario),
        "versions": {
            "iedn": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


if __name__ == "__main__":
    main()
