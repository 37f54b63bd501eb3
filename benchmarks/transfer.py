"""Bytes of a round and site by transfer setting, and what they do to the final image quality.

Two parts, each a set of simulated federations in this process (phantom results):

``quality``  a small network, two sites, ten rounds, three seeds: SSIM and PSNR on test patients
             after the last round, with every setting on the same cohorts, and the bytes until then.
``paper``    the network of the paper (37 million parameters) on small volumes, three short rounds:
             bytes of real updates. Its quality says nothing and is not shown.

All bytes are those of arrays as they travel, counted by the coordinator: the model to the site, for
training and for validation, and the update back. They are given as a share of a plain exchange: the
whole model in float32 once down and once up a round. What a run has done is kept in ``--out``, and
not done again. Run from the repository's root:

    PYTHONPATH=. python benchmarks/transfer.py --out /tmp/transfer
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from iedn import __version__
from iedn.files import atomic_write_bytes
from iedn.model import build_network
from iedn.parameters import state_by_group
from iedn.protocol.messages import FailureReply
from iedn.protocol.records import array_bytes, to_record
from server.config import FederationConfig
from server.run_folder import RunFolder
from simulation.engine import run_in_process
from simulation.prepare import is_finished, prepare_run
from simulation.scenario import ScenarioConfig

Result = dict[str, Any]

SETTINGS: dict[str, Result] = {
    "plain": {"hold": False},
    "fp32": {},
    "fp16": {"up": "fp16", "down": "fp16"},
    "bf16 up": {"up": "bf16", "down": "fp16"},
    "int8 up": {"up": "int8"},
    "int8, not compressed": {"up": "int8", "down": "int8", "entropy_coding": False},
    "int8": {"up": "int8", "down": "int8"},
    "int4 up": {"up": "int4", "down": "int8"},
    "int4, not compressed": {"up": "int4", "down": "int4", "entropy_coding": False},
    "int4": {"up": "int4", "down": "int4"},
}
SAME_MODEL = {"int8, not compressed": "int8", "int4, not compressed": "int4"}
"""Settings that must end with the very model of another one."""
QUALITY = ("plain", "fp16", "int8", "int4 up", "int4")
PAPER = ("fp32", "fp16", "int8, not compressed", "int8", "int4 up", "int4, not compressed", "int4")

RESULT = "measured.json"
FULL, FEW = "site-full", "site-few"
ALL = ["T1WI", "T2WI", "FLAIR", "ADC", "T1_C", "ASL"]
MODALITIES = {FULL: ALL, FEW: ALL[:4]}
SCAN = {"rows": 32, "columns": 32, "slices": 8, "spacing_mm": 6.875, "slice_spacing_mm": 16.0}
TRAINING = {"batch_size": 2, "learning_rate": 2e-3, "loss": "reference", "threads": 1}
BYTE_ROWS, QUALITY_ROWS = "(bytes)", "(quality)"
HEAD = """# Bytes of a round, and what they cost

**Phantom results.** Written by `benchmarks/transfer.py`, whose head says what is run. CPU time of
all runs: {cpu_s} s. The settings are explained in [Bytes of a round](../explanation/transfer.md).

## Bytes: the network of the paper, real updates

Share of a plain exchange (the whole model in float32, once down and once up). The first round also
brings the initial model, whole; each later one brings one change down and one up.

| setting | up | down | full site: first, then | without ASL and T1_C: first, then |
|---|---|---|---|---|
(bytes)

## Image quality: a small network, ten rounds

Test patients after the last round, mean over sites. Differences are from `plain` (no setting but
`hold = false`) with the same seed: mean over seeds, and each seed's. Near: at most {ssim} points
of SSIM and {psnr} dB of PSNR away, as the mean over seeds. Bytes: full site, all ten rounds.

| setting | bytes | SSIM (%) | difference | PSNR (dB) | difference | near |
|---|---|---|---|---|---|---|
(quality)"""
NEAR_SSIM, NEAR_PSNR = 0.1, 0.05
"""How near to the quality of the plain exchange a setting has to stay: points and dB."""


def scenario(part: str, transfer: Result) -> ScenarioConfig:
    """The federation of a part."""
    is_paper = part == "paper"
    preset: Result = {"preset": "tiny"}
    if is_paper:
        grid = {"rows": 32, "columns": 32, "spacing_mm": 6.875}
        preset = {"custom_preset": {"grid": grid, "network": {"base_channels": 16, "depth": 4}}}
    return ScenarioConfig.model_validate(
        {
            "name": part,
            "cohort_seed": 40,
            **preset,
            "training": {**TRAINING, "local_steps": 2 if is_paper else 4},
            "rounds": {
                "count": 3 if is_paper else 10,
                "quorum": len(MODALITIES),
                "poll_interval_s": 0.02,
                "selection": "last",
                "keep": 2,
            },
            "transfer": transfer,
            "sites": {name: site(name, patients=4 if is_paper else 16) for name in MODALITIES},
        }
    )


def site(name: str, *, patients: int) -> Result:
    """One virtual site: half of its patients train."""
    return {
        "split": {"train": 0.5, "validation": 0.125, "test": 0.375},
        "phantom": {
            "patients": patients,
            "min_visits": 1,
            "max_visits": 1,
            "protocol": {**SCAN, "modalities": MODALITIES[name]},
        },
    }


def folder_of(out: Path, part: str, setting: str, seed: int) -> Path:
    return out / f"{part}-{setting.replace(', ', '-').replace(' ', '-')}-{seed}"


def measured(out: Path, part: str, setting: str, seed: int) -> Result:
    """One federation, run unless its result is there."""
    folder = folder_of(out, part, setting, seed)
    path = folder / RESULT
    if path.exists():
        return dict(json.loads(path.read_text()))
    federation = scenario(part, SETTINGS[setting])
    config = prepare_run(federation, folder, cohorts=out / "cohorts", seed=seed, workers=1)
    started = time.process_time()
    if not is_finished(folder):
        run_in_process(folder, config, workers=1)
    result = result_of(folder, config)
    result |= {"part": part, "setting": setting, "seed": seed}
    result["cpu_s"] = round(time.process_time() - started, 1)
    atomic_write_bytes(path, json.dumps(result, indent=2).encode())
    print(json.dumps(result), flush=True)
    return result


def result_of(folder: Path, config: FederationConfig) -> Result:
    """What a finished run's history says."""
    events = RunFolder(folder, config).events()
    commits = [e for e in events if e["event"] == "commit" and e["round"]]
    evaluations = [e for e in events if e["event"] == "evaluation"]
    (test,) = [e for e in evaluations if e["split"] == "test"]
    validations = {e["round"]: e["bytes_down"] for e in evaluations if e["split"] == "validation"}
    metrics = [s["metrics"] for s in test["sites"].values()]
    return {
        "model_hash": commits[-1]["model_hash"],
        "ssim_percent": math.fsum(m["ssim_percent_mean"] for m in metrics) / len(metrics),
        "psnr_db": math.fsum(m["psnr_db_mean"] for m in metrics) / len(metrics),
        "plain_bytes": 2 * model_bytes(config),
        "rounds": {
            name: [
                {
                    "down": commit["roster"][name]["bytes_down"]
                    + validations[commit["round"]][name],
                    "up": commit["roster"][name]["bytes"],
                }
                for commit in commits
            ]
            for name in sorted(config.sites)
        },
    }


def model_bytes(config: FederationConfig) -> int:
    """Bytes of the whole model in float32, as it would travel."""
    model = state_by_group(build_network(config.effective_preset.network, config.seed))
    return array_bytes(to_record(FailureReply(code="none", incident="0" * 12), model))


def shares(result: Result, name: str) -> Result:
    """A site's bytes as shares of a plain exchange: of the first round, a later one, and all."""
    rounds = [r["down"] + r["up"] for r in result["rounds"][name]]
    plain = result["plain_bytes"]
    later = rounds[1:]
    return {
        "first": rounds[0] / plain,
        "later": math.fsum(later) / len(later) / plain,
        "all": math.fsum(rounds) / len(rounds) / plain,
    }


def summary(results: Iterable[Result]) -> Result:
    """Bytes by part and setting, and quality beside the plain exchange of the same seed."""
    results = list(results)
    by_key = {(r["part"], r["setting"], r["seed"]): r for r in results}
    for setting, same in SAME_MODEL.items():
        hashes = {by_key[k]["model_hash"] for k in pair_of(setting, same) if k in by_key}
        if len(hashes) > 1:
            raise SystemExit(f"{setting} and {same} end with different models")
    return {
        "label": "phantom results",
        "version": __version__,
        "bytes": {part: byte_rows(results, part) for part in ("paper", "quality")},
        "quality": quality_rows(by_key),
        "cpu_s": round(math.fsum(r["cpu_s"] for r in results)),
    }


def pair_of(*settings: str) -> list[tuple[str, str, int]]:
    return [("paper", setting, 1) for setting in settings]


def byte_rows(results: list[Result], part: str) -> Result:
    """By setting: each site's shares, of the first seed."""
    first = [r for r in results if (r["part"], r["seed"]) == (part, 1)]
    return {r["setting"]: {s: shares(r, s) for s in (FULL, FEW)} for r in first}


def quality_rows(by_key: dict[tuple[str, str, int], Result]) -> Result:
    """By setting: each seed's difference from the plain exchange, and their mean."""
    rows: Result = {}
    for setting in QUALITY:
        seeds = sorted(s for p, name, s in by_key if (p, name) == ("quality", setting))
        seeds = [s for s in seeds if ("quality", "plain", s) in by_key]
        if not seeds:
            continue
        pairs = [(by_key["quality", setting, s], by_key["quality", "plain", s]) for s in seeds]
        ssim = [a["ssim_percent"] - b["ssim_percent"] for a, b in pairs]
        psnr = [a["psnr_db"] - b["psnr_db"] for a, b in pairs]
        rows[setting] = {
            "seeds": seeds,
            "ssim_percent": statistics.mean(a["ssim_percent"] for a, _ in pairs),
            "psnr_db": statistics.mean(a["psnr_db"] for a, _ in pairs),
            "ssim_differences": ssim,
            "psnr_differences": psnr,
            "ssim_difference": statistics.mean(ssim),
            "psnr_difference": statistics.mean(psnr),
            "is_near": abs(statistics.mean(ssim)) <= NEAR_SSIM
            and abs(statistics.mean(psnr)) <= NEAR_PSNR,
        }
    return rows


def page(found: Result) -> str:
    """The tables, as a Markdown page."""
    lines = HEAD.format(cpu_s=found["cpu_s"], ssim=NEAR_SSIM, psnr=NEAR_PSNR).split("\n")
    bytes_at, quality_at = lines.index(BYTE_ROWS), lines.index(QUALITY_ROWS)
    lines[quality_at : quality_at + 1] = [
        quality_line(name, row, found) for name, row in found["quality"].items()
    ]
    lines[bytes_at : bytes_at + 1] = [
        byte_line(name, sites) for name, sites in found["bytes"]["paper"].items()
    ]
    return "\n".join(lines)


def byte_line(name: str, sites: Result) -> str:
    setting = {"up": "fp32", "down": "fp32", **SETTINGS[name]}
    cells = [f"{s['first']:.3f}, {s['later']:.3f}" for s in (sites[FULL], sites[FEW])]
    return f"| {name} | {setting['up']} | {setting['down']} | {cells[0]} | {cells[1]} |"


def quality_line(name: str, row: Result, found: Result) -> str:
    share = found["bytes"]["quality"][name][FULL]["all"]
    ssim, psnr = (
        f"{row[key]:{form}} | {row[f'{kind}_difference']:+.3f} "
        f"({', '.join(f'{d:+.3f}' for d in row[f'{kind}_differences'])})"
        for key, kind, form in (("ssim_percent", "ssim", ".2f"), ("psnr_db", "psnr", ".3f"))
    )
    near = "yes" if row["is_near"] else "no"
    return f"| {name} | {share:.3f} | {ssim} | {psnr} | {near} |"


def main() -> None:
    """Run what is missing, and print the summary and the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--parts", nargs="+", default=["quality", "paper"])
    parser.add_argument("--no-runs", action="store_true", help="only tell what has been run")
    parser.add_argument("--page", type=Path, help="where the tables are written, as Markdown")
    options = parser.parse_args()
    runs = [("quality", setting, seed) for setting in QUALITY for seed in options.seeds]
    runs += [("paper", setting, 1) for setting in PAPER]
    runs = [run for run in runs if run[0] in options.parts]
    if options.no_runs:
        runs = [run for run in runs if (folder_of(options.out, *run) / RESULT).exists()]
    results = [measured(options.out, *run) for run in runs]
    found = summary(results)
    atomic_write_bytes(options.out / "transfer.json", json.dumps(found, indent=2).encode() + b"\n")
    print(json.dumps(found))
    print(page(found))
    if options.page:
        atomic_write_bytes(options.page, page(found).encode() + b"\n")


if __name__ == "__main__":
    main()
