"""Image quality against epsilon, on phantoms: what noise costs, and what it hides.

One simulated hospital trains by itself: a network from nothing, or the decoder of a network that a
second phantom cohort has trained without noise. Every trained network is also attacked by
membership inference, and single updates by gradient inversion. Finished units are lines of
``units.jsonl`` and are not done again.

    python benchmarks/privacy_utility.py --out runs/privacy --workers 2 --table docs/results
"""

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from privacy_page import write_page
from privacy_work import INVERSION, MODES, Settings, Unit, epsilons_of, prepare, run_unit
from unit_lines import finished, in_processes

from iedn.files import append_line

UNITS = "units-{patients}-{steps}.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/privacy"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--patients", type=int, default=60, help="of which 4 in 5 train")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--inversion-steps", type=int, default=120)
    modes = [*MODES, INVERSION]
    parser.add_argument("--modes", nargs="+", choices=modes, default=modes)
    parser.add_argument("--workers", type=int, default=1, help="units at a time")
    parser.add_argument("--table", type=Path, help="folder that gets privacy.md and privacy.png")
    arguments = parser.parse_args()
    settings = Settings(
        arguments.out, arguments.patients, arguments.steps, arguments.inversion_steps
    )
    path = arguments.out / UNITS.format(patients=settings.patients, steps=settings.steps)
    units = wanted(arguments, finished(path))
    for number, record in enumerate(made(units, settings, arguments), start=1):
        append_line(path, json.dumps(record))
        print(f"{number} of {len(units)}: {json.dumps(record)}", file=sys.stderr, flush=True)
    if arguments.table:
        write_page(arguments.table, finished(path), settings)


def wanted(arguments: argparse.Namespace, records: list[dict[str, object]]) -> list[Unit]:
    """Seed by seed, so that what is there early is complete."""
    done = {Unit(r["mode"], r["epsilon"], r["seed"]) for r in records}
    units = [
        Unit(mode, epsilon, seed)
        for seed in range(arguments.seeds)
        for mode in arguments.modes
        for epsilon in epsilons_of(mode)
    ]
    return [unit for unit in units if unit not in done]


def made(
    units: list[Unit], settings: Settings, arguments: argparse.Namespace
) -> Iterator[dict[str, object]]:
    """Records in the order they are finished."""
    if not units:
        return iter(())
    torch.set_num_threads(1)
    prepare(settings, arguments.modes)
    return in_processes(partial(run_unit, settings=settings), units, arguments.workers)


if __name__ == "__main__":
    main()
