"""How much noise a budget needs: sigma by epsilon, steps and sampling rate, for N patients.

In brackets: sigma / (q N), the standard deviation of the noise in a coordinate of the mean clipped
gradient, in units of the clipping norm. Lower is better.

    python benchmarks/privacy_table.py                        # prints the table
    python benchmarks/privacy_table.py --write docs/explanation/privacy.md
"""

import argparse
import json
from pathlib import Path

from client.accounting import noise_multiplier_for

EPSILONS = (1.0, 3.0, 8.0, 200.0)
STEPS = (100, 400, 1600)
RATES = (0.125, 0.25)
BEGIN, END = "<!-- privacy table: begin -->", "<!-- privacy table: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=129)
    parser.add_argument("--delta", type=float, default=1e-3)
    parser.add_argument("--write", type=Path, help="Markdown file with the two marks")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = table(arguments.delta)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    text = markdown(rows, arguments.patients, arguments.delta)
    if arguments.write:
        replace(arguments.write, text)
    else:
        print(text)


def table(delta: float) -> list[dict[str, float]]:
    """A row for every rate, number of steps and epsilon."""
    return [
        {
            "rate": rate,
            "steps": steps,
            "epsilon": epsilon,
            "sigma": noise_multiplier_for(epsilon, delta, sample_rate=rate, steps=steps),
        }
        for rate in RATES
        for steps in STEPS
        for epsilon in EPSILONS
    ]


def markdown(rows: list[dict[str, float]], patients: int, delta: float) -> str:
    lines = [
        f"N = {patients}, delta = {delta:g}; sigma, and in brackets sigma / (q N)",
        "",
        "| q | T | " + " | ".join(f"eps = {e:g}" for e in EPSILONS) + " |",
        "|---|---|" + "---|" * len(EPSILONS),
    ]
    for rate in RATES:
        for steps in STEPS:
            cells = [
                f"{r['sigma']:.2f} ({r['sigma'] / (rate * patients):.3f})"
                for r in rows
                if (r["rate"], r["steps"]) == (rate, steps)
            ]
            lines.append(f"| {rate:g} | {steps} | {' | '.join(cells)} |")
    return "\n".join(lines)


def replace(path: Path, text: str) -> None:
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
