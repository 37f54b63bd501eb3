"""Bytes of a round and site by transfer setting, and what they do to the final image quality.

Simulated federations in this process (phantom results), in two parts:

``quality``  a small network, two sites, ten rounds, eight seeds: SSIM and PSNR on test patients
             after the last round, with every setting on the same cohorts, and the bytes until then.
``paper``    the network of the paper (37 million parameters) on small volumes, three short rounds
             in float32; each site's last update, and the last step of the model, are then encoded
             with every setting.

All bytes are those of arrays as they travel: the model to the site, for training and validation,
and the update back. They are given as a share of a plain exchange: the whole model in float32 once
down and once up a round. What has been run is kept in ``--out``, and not run again. From the
repository's root:

    PYTHONPATH=. python benchmarks/transfer.py --out /tmp/transfer
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from client.kept_reply import FILE as KEPT
from iedn import __version__
from iedn.checkpoint import load_checkpoint
from iedn.config import TransferConfig
from iedn.files import atomic_write_bytes
from iedn.model import build_network
from iedn.parameters import by_group, state_by_group
from iedn.protocol.encoding import encode
from iedn.protocol.messages import FailureReply
from iedn.protocol.records import Tensors, array_bytes, to_record
from iedn.quantisation import ENCODINGS
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
QUALITY = ("plain", "int8", "int4", "fp16", "int4 up")

RESULT = "measured.json"
NO_MESSAGE = FailureReply(code="none", incident="0" * 12)
FULL, FEW = "site-full", "site-few"
ALL = ["T1WI", "T2WI", "FLAIR", "ADC", "T1_C", "ASL"]
MODALITIES = {FULL: ALL, FEW: ALL[:4]}
SCAN = {"rows": 32, "columns": 32, "slices": 8, "spacing_mm": 6.875, "slice_spacing_mm": 16.0}
TRAINING = {"batch_size": 2, "learning_rate": 2e-3, "loss": "reference", "threads": 1}
BYTE_ROWS, QUALITY_ROWS = "(bytes)", "(quality)"
HEAD = """# Bytes of a round, and what they cost

**Phantom results.** Written by `benchmarks/transfer.py`, whose head says what is run; what has
not been run yet is not shown. Settings: [Bytes of a round](../explanation/transfer.md).

## Bytes: the network of the paper, real updates

Share of a plain exchange (the whole model in float32, once down and once up). The first round also
brings the initial model, whole (0.5 and 0.4 more). `plain` is sent the model twice a round, for
training and for validation.

| setting | full site: down + up | sum | site without ASL and T1_C: down + up | sum |
|---|---|---|---|---|
(bytes)

## Image quality: a small network, ten rounds

Test patients after the last round, mean over sites. Differences are from `plain` (no setting but
`hold = false`) with the same seed: mean over seeds, and its standard error. Near: the mean is at
most {ssim} points of SSIM and {psnr} dB of PSNR away. Bytes: full site, ten rounds, seed 1.
`fp16` changes an update by less than a thousandth: what it differs by is the runs' variation.

| setting | bytes | seeds | SSIM (%) | difference | PSNR (dB) | difference | near |
|---|---|---|---|---|---|---|---|
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
    return array_bytes(to_record(NO_MESSAGE, model))


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


def paper_bytes(out: Path) -> Result:
    """Shares of a round's bytes, up and down, by setting and site, of real updates."""
    path = out / "paper.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    result = measured(out, "paper", "fp32", 1)
    folder = folder_of(out, "paper", "fp32", 1)
    plain = result["plain_bytes"]
    step = last_step(folder, len(result["rounds"][FULL]))
    updates = {name: by_group(load_file(folder / "sites" / name / KEPT)) for name in MODALITIES}
    rows: Result = {}
    for setting, changes in SETTINGS.items():
        transfer = TransferConfig.model_validate(changes)
        down = {g: encoded_bytes({g: t}, transfer.down, transfer) for g, t in step.items()}
        rows[setting] = {
            name: {
                "up": encoded_bytes(update, transfer.up, transfer) / plain,
                "down": sum(down[g] for g in update) / plain * (1 if transfer.hold else 2),
            }
            for name, update in updates.items()
        }
    atomic_write_bytes(path, json.dumps(rows, indent=2).encode() + b"\n")
    return rows


def last_step(folder: Path, rounds: int) -> dict[str, Tensors]:
    """The change of the model in the last round, by group."""
    before, after = (
        load_checkpoint(folder / f"round-{n:04d}.safetensors").tensors for n in (rounds - 1, rounds)
    )
    return dict(by_group({name: after[name] - before[name] for name in after}))


def encoded_bytes(groups: Mapping[str, Tensors], encoding: str, transfer: TransferConfig) -> int:
    """Bytes of groups on the wire."""
    sent: dict[str, Tensors | bytes] = dict(groups)
    for group, tensors in groups.items():
        if encoding in ENCODINGS:
            entropy = transfer.entropy_coding
            payload = encode(tensors, {}, encoding, entropy_coding=entropy).payload
            sent[group] = payload
    return array_bytes(to_record(NO_MESSAGE, sent))


def summary(results: Iterable[Result], paper: Result) -> Result:
    """Bytes by setting, and quality beside the plain exchange of the same seed."""
    results = list(results)
    return {
        "label": "phantom results",
        "version": __version__,
        "paper_bytes": paper,
        "bytes": {
            r["setting"]: {s: shares(r, s) for s in MODALITIES} for r in results if r["seed"] == 1
        },
        "quality": quality_rows({(r["setting"], r["seed"]): r for r in results}),
    }


def quality_rows(by_key: dict[tuple[str, int], Result]) -> Result:
    """By setting: each seed's difference from the plain exchange, and their mean."""
    rows: Result = {}
    for setting in QUALITY:
        seeds = sorted(s for x, s in by_key if x == setting and ("plain", s) in by_key)
        if not seeds:
            continue
        pairs = [(by_key[setting, s], by_key["plain", s]) for s in seeds]
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
    lines = HEAD.format(ssim=NEAR_SSIM, psnr=NEAR_PSNR).split("\n")
    bytes_at, quality_at = lines.index(BYTE_ROWS), lines.index(QUALITY_ROWS)
    lines[quality_at : quality_at + 1] = [
        quality_line(name, row, found) for name, row in found["quality"].items()
    ]
    lines[bytes_at : bytes_at + 1] = [
        byte_line(name, sites) for name, sites in found["paper_bytes"].items()
    ]
    return "\n".join(lines)


def byte_line(name: str, sites: Result) -> str:
    cells = [
        f"{site['down']:.4f} + {site['up']:.4f} | {site['down'] + site['up']:.4f}"
        for site in (sites[FULL], sites[FEW])
    ]
    return f"| {name} | {cells[0]} | {cells[1]} |"


def quality_line(name: str, row: Result, found: Result) -> str:
    share = found["bytes"][name][FULL]["all"]
    ssim, psnr = (
        f"{row[key]:{form}} | {row[f'{kind}_difference']:+.3f} "
        f"± {standard_error(row[f'{kind}_differences']):.3f}"
        for key, kind, form in (("ssim_percent", "ssim", ".2f"), ("psnr_db", "psnr", ".3f"))
    )
    near = "yes" if row["is_near"] else "no"
    return f"| {name} | {share:.3f} | {len(row['seeds'])} | {ssim} | {psnr} | {near} |"


def standard_error(differences: list[float]) -> float:
    """Of their mean; 0 for one."""
    if len(differences) < 2:
        return 0.0
    return statistics.stdev(differences) / math.sqrt(len(differences))


def main() -> None:
    """Run what is missing, and print the summary and the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(1, 9)])
    parser.add_argument("--no-runs", action="store_true", help="only tell what has been run")
    parser.add_argument("--page", type=Path, help="where the tables are written, as Markdown")
    options = parser.parse_args()
    runs = [("quality", setting, seed) for setting in QUALITY for seed in options.seeds]
    if options.no_runs:
        runs = [run for run in runs if (folder_of(options.out, *run) / RESULT).exists()]
    results = [measured(options.out, *run) for run in runs]
    found = summary(results, paper_bytes(options.out))
    atomic_write_bytes(options.out / "transfer.json", json.dumps(found, indent=2).encode() + b"\n")
    print(json.dumps(found))
    print(page(found))
    if options.page:
        atomic_write_bytes(options.page, page(found).encode() + b"\n")


if __name__ == "__main__":
    main()
