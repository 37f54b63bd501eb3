"""The page of the benchmark of federated synthesis, and the same numbers as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from federated_numbers import (
    OWN,
    CurveMetric,
    Record,
    Results,
    best_single_site,
    cross_site,
    difference,
    estimate,
    late_gain,
    rounds_to_pooled,
    spread_of_sites,
    worst_site,
)
from federated_units import CORE, OPTIMISERS, SUBSETS, TUNED, Method

from iedn.evaluation.statistics import Estimate
from iedn.files import atomic_write_bytes
from simulation.scenario import ScenarioConfig, load_scenario
from simulation.table2_page import NOTICE

NAME = "federated-synthesis"
COMMAND = "python benchmarks/federated_synthesis.py --out runs/federated-synthesis"
TRIALS_COMMAND = "python benchmarks/federated_trials.py --out runs/federated-synthesis"
ORDER: tuple[Method, ...] = (
    "local",
    "fedavg",
    "modality-aware",
    "tuned",
    "fedprox",
    "fedadam",
    "pooled",
)
TITLES: dict[str, str] = {
    "local": "each site alone",
    "fedavg": "plain FedAvg",
    "modality-aware": "modality-aware",
    "tuned": f"modality-aware, {TUNED}",
    "fedprox": "modality-aware + FedProx",
    "fedadam": "modality-aware + FedAdam",
    "pooled": "pooled (reference)",
}
ASL_TITLES = {"all": "all sites have ASL", "one": "one site has ASL", "half": "three of five sites"}
GAP_PSNR_DB, GAP_SSIM, PLATEAU_DB = 0.3, 0.5, 0.1
METRICS: dict[CurveMetric, tuple[str, int]] = {
    "psnr_db": ("PSNR (dB)", 2),
    "ssim_percent": ("SSIM (%)", 2),
}
TRIED: tuple[Method, ...] = ("tuned",)
NOT_YET = "*Not run yet.*"


def write_page(
    folder: Path, records: Sequence[Record], trials: Sequence[Record], scenario_file: Path
) -> None:
    """``federated-synthesis.md`` and ``.json``."""
    results, scenario = Results(records), load_scenario(str(scenario_file))
    found = {
        "label": "phantom results; they say nothing about patients",
        "command": COMMAND,
        "versions": records[0]["versions"],
        "units": len(records),
        "cpu_s_a_unit": round(fmean(r["cpu_s"] for r in records), 1),
        "core": {asl: _conditions(results, "default", asl, TRIED) for asl in ("all", "one")},
        "trials": trials,
        "exploratory": {
            f"{lesions} lesions, {ASL_TITLES[asl]}": _conditions(results, lesions, asl)
            for lesions, asl in (("default", "half"), ("hard", "all"), ("hard", "one"))
        },
        "optimisers": _conditions(results, "default", "one", OPTIMISERS),
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = _page(found, results, scenario)
    atomic_write_bytes(folder / f"{NAME}.md", text.encode())
    content = json.dumps(found, indent=1, default=asdict)
    atomic_write_bytes(folder / f"{NAME}.json", content.encode() + b"\n")


def _conditions(
    results: Results, lesions: str, asl: str, besides: Sequence[Method] = ()
) -> dict[str, Any]:
    """Every method that was run, on the seeds that all of these have; empty if there is none.

    Args:
        results: of all units.
        lesions: of the phantoms.
        asl: which sites have it.
        besides: methods that are not of the core.
    """
    wanted = [m for m in ORDER if m in (*CORE, *besides)]
    if asl == "all":  # the same as modality-aware; run once to see that
        wanted.remove("fedavg")
    there = [m for m in wanted if results.seeds(lesions, asl, m)]
    if besides == OPTIMISERS and not set(besides) & set(there):
        return {}
    seeds = results.seeds(lesions, asl, *there) if there else []
    if not seeds:
        return {}
    of_method = {m: results.records(lesions, asl, m, seeds) for m in there}
    pooled, aware = of_method.get("pooled"), of_method.get("modality-aware")
    found: dict[str, Any] = {"seeds": seeds, "missing": [m for m in wanted if m not in there]}
    found["methods"] = {m: _method(results, m, r, pooled) for m, r in of_method.items()}
    if aware and "fedavg" in of_method:
        found["modality_aware_minus_fedavg"] = {
            subset: _differences(results, aware, of_method["fedavg"], subset)
            for subset in ("all six", OWN, "without ASL")
        }
    if pooled:
        found["late_gain_of_pooled_db"] = [round(late_gain(r), 3) for r in pooled]
    if aware and "local" in of_method:
        local = of_method["local"]
        found["above_best_single_site_db"] = best_single_site(results, aware, local)
    if "local" in of_method:
        found["cross_site_psnr_db"] = cross_site(results, of_method["local"])
    return found | _same_averaging(results, lesions, asl)


def _same_averaging(results: Results, lesions: str, asl: str) -> dict[str, Any]:
    """Largest difference between both ways of averaging where they have to be one."""
    seeds = results.seeds(lesions, asl, "fedavg", "modality-aware") if asl == "all" else []
    if not seeds:
        return {}
    a, b = (results.records(lesions, asl, m, seeds) for m in ("modality-aware", "fedavg"))
    gap = difference(*(results.values(r, "all six", "psnr_db") for r in (a, b)))
    largest = max(float(abs(v.values).max()) for v in gap.values())
    return {"fedavg_largest_difference_db": {"seeds": seeds, "value": largest}}


def _method(
    results: Results, method: Method, records: Sequence[Record], pooled: Sequence[Record] | None
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for metric in METRICS:
        values = results.values(records, OWN, metric)
        found[metric] = {
            "mean": estimate(values),
            "worst_site": estimate(values, worst_site),
            "sd_over_sites": estimate(values, spread_of_sites),
            "by_inputs": {s: estimate(results.values(records, s, metric)) for s in SUBSETS},
            "rounds_to_95_percent_of_pooled": [
                rounds_to_pooled(r, p, metric) for r, p in zip(records, pooled, strict=True)
            ]
            if pooled and records[0]["curve"]
            else [],
        }
    found["lesion_error"] = estimate(results.values(records, OWN, "lesion_error"))
    if pooled and method != "pooled":
        found["gap_to_pooled"] = _differences(results, pooled, records, OWN)
    return found


def _differences(
    results: Results, a: Sequence[Record], b: Sequence[Record], subset: str
) -> dict[str, Estimate]:
    return {
        metric: estimate(
            difference(results.values(a, subset, metric), results.values(b, subset, metric))
        )
        for metric in (*METRICS, "lesion_error")
    }


def _page(found: Mapping[str, Any], results: Results, scenario: ScenarioConfig) -> str:
    core = found["core"]
    parts = [
        "# Federated synthesis with missing modalities",
        "",
        f"**{NOTICE}**",
        "",
        _setting(found, scenario),
        "",
        "## The bars",
        "",
        *_bars(core),
        "",
        "## What was tried for the gap",
        "",
        *_trials(found["trials"]),
        "",
        "## Methods",
        "",
    ]
    for asl, condition in core.items():
        parts += [f"### {_heading(ASL_TITLES[asl])}", "", *_condition(condition), ""]
    parts += ["## Every site's own model at every site", "", *_cross(core["all"]), ""]
    parts += ["## Exploratory: one seed each", ""]
    parts += [
        "One seed: intervals are over patients only. Nothing here was planned as a comparison.",
        "",
    ]
    for title, condition in found["exploratory"].items():
        parts += [f"### {_heading(title)}", "", *_condition(condition), ""]
    parts += [f"### Optimisers, {ASL_TITLES['one']}", "", *_condition(found["optimisers"]), ""]
    return "\n".join(parts)


def _setting(found: Mapping[str, Any], scenario: ScenarioConfig) -> str:
    training, rounds = scenario.training, scenario.rounds.count
    config = scenario.federation()
    grid, network = config.effective_preset.grid, config.effective_preset.network
    sites, versions = len(scenario.sites), found["versions"]
    steps = rounds * training.local_steps
    return (
        "*Not run by the tests: it takes hours.*\n\n"
        f"```sh\n{COMMAND} --workers 2\n{COMMAND} --exploratory --workers 2\n"
        f"{TRIALS_COMMAND} --workers 2\n{COMMAND} --tuned --workers 2\n"
        f"{COMMAND} --table docs/results\n```\n\n"
        f"{found['units']} units, {found['cpu_s_a_unit']:.0f} s of CPU each on the average, one "
        f"thread; iedn {versions['iedn']}, torch {versions['torch']}, numpy {versions['numpy']}, "
        f"Python {versions['python']}.\n\n"
        f"{sites} sites with {next(iter(scenario.sites.values())).phantom.patients} phantom "
        f"patients each, volumes {grid.rows}x{grid.columns}x16 at {grid.spacing_mm:g} mm "
        f"(`benchmarks/federated_synthesis.toml`); {network.base_channels} base channels, depth "
        f"{network.depth}, no refinement blocks: a small network, trained shortly. "
        f"{rounds} rounds of {training.local_steps} steps of {training.batch_size} scans at a "
        f"site. Every method makes as many steps on the same scans: a site alone {steps}, the "
        f"pooled model {steps * sites}, all sites together {steps * sites}. Each site tests on "
        "held-out patients; where one site has ASL, the others' *training* scans have none.\n\n"
        "Sites count alike: mean over sites, worst site, SD over sites. *Own inputs*: all six at "
        "sites that have ASL, five elsewhere. *All six* gives ASL at every site. Lesion error: "
        "absolute error of the lesion's mean rCBV. In brackets 95 % intervals; seeds are drawn, "
        "and patients within; a patient counts in all seeds, since all seeds test the same ones. "
        f"*Rounds*: until the mean over two patients a site is 95 % of the pooled model's last."
    )


def _bars(core: Mapping[str, Any]) -> list[str]:
    lines = [
        *_gap_bars(core["all"]),
        *(line for asl, condition in core.items() for line in _condition_bars(asl, condition)),
        *_averaging_bars(core["one"]),
    ]
    return ["| bar | found | |", "|---|---|---|", *lines] if lines else [NOT_YET]


def _gap_bars(everywhere: Mapping[str, Any]) -> list[str]:
    methods, lines = everywhere.get("methods", {}), []
    for method in ("modality-aware", "tuned"):
        if gap := methods.get(method, {}).get("gap_to_pooled"):
            settings = "" if method == "modality-aware" else f", {TUNED}"
            psnr, ssim = (gap[metric] for metric in METRICS)
            what = f"gap to pooled{settings} <= {GAP_PSNR_DB} dB"
            lines.append(_bar(what, _signed(psnr), psnr.value <= GAP_PSNR_DB))
            what = f"gap to pooled{settings} <= {GAP_SSIM} SSIM points"
            lines.append(_bar(what, _signed(ssim), ssim.value <= GAP_SSIM))
    return lines


def _trials(trials: Sequence[Record]) -> list[str]:
    if not trials:
        return [NOT_YET]
    rows = [
        _row([t["name"], f"{t['psnr_db']:.2f}", f"{t['ssim_percent']:.2f}"])
        for t in sorted(trials, key=lambda t: -t["psnr_db"])
    ]
    return [
        "The settings of the benchmark were written down before its first result, and the bars "
        "above are held against them. Afterwards other settings with as many steps were tried "
        "**on other phantoms** (five sites like these, all with ASL, one seed, all six inputs, "
        f"mean over sites; `{TRIALS_COMMAND}`); the best of a federation, *{TUNED}*, was then run "
        "on the benchmark's phantoms with all seeds. Momentum is that of the coordinator "
        "(`aggregation.optimizer`, FedAvgM). Pooled training is the reference, no upper bound: it "
        "takes two scans a step at a constant rate, and has not plateaued.",
        "",
        _row(["settings", "PSNR (dB)", "SSIM (%)"]),
        _row(["---"] * 3),
        *rows,
    ]


def _condition_bars(asl: str, condition: Mapping[str, Any]) -> list[str]:
    lines = []
    if above := condition.get("above_best_single_site_db"):
        least = min(above, key=lambda site: above[site][1].value)
        best, gain = above[least]
        text = f"least at {least}: {_signed(gain)} dB above {best}'s model"
        lines.append(_bar(f"above the best single site, {ASL_TITLES[asl]}", text, gain.value > 0))
    if late := condition.get("late_gain_of_pooled_db"):
        text = f"{max(late):.2f} dB at most, {fmean(late):.2f} on the average"
        bar = f"pooled gains < {PLATEAU_DB} dB in its last fifth, {ASL_TITLES[asl]}"
        lines.append(_bar(bar, text, max(late) < PLATEAU_DB))
    return lines


def _averaging_bars(one: Mapping[str, Any]) -> list[str]:
    return [
        _bar(
            f"modality-aware - FedAvg > 0, one site has ASL, {subset}",
            f"{_signed(found['psnr_db'])} dB, {_signed(found['ssim_percent'])} SSIM points",
            found["psnr_db"].low > 0,
        )
        for subset, found in one.get("modality_aware_minus_fedavg", {}).items()
    ]


def _bar(what: str, found: str, is_met: bool) -> str:
    return f"| {what} | {found} | {'met' if is_met else '**missed**'} |"


def _condition(condition: Mapping[str, Any]) -> list[str]:
    if not condition:
        return [NOT_YET]
    methods = condition["methods"]
    lines = [f"Seeds {', '.join(str(s) for s in condition['seeds'])}.", ""]
    if condition["missing"]:
        missing = ", ".join(TITLES[m] for m in condition["missing"])
        lines[0] += f" **Not run yet: {missing}.**"
    for metric, (title, digits) in METRICS.items():
        header = ["", f"{title}, own inputs", "worst site", "SD over sites", "gap to pooled"]
        header += list(SUBSETS)
        lines += [_row(header), _row(["---"] * len(header))]
        for method, found in methods.items():
            of = found[metric]
            gap = found.get("gap_to_pooled")
            cells = [TITLES[method], _with_interval(of["mean"], digits)]
            cells += [f"{of['worst_site'].value:.{digits}f}", f"{of['sd_over_sites'].value:.2f}"]
            cells.append(_signed(gap[metric]) if gap else "-")
            cells += [f"{of['by_inputs'][s].value:.{digits}f}" for s in SUBSETS]
            lines.append(_row(cells))
        lines.append("")
    header = ["", "lesion rCBV error, own inputs"]
    header += [f"rounds to 95 % of pooled {title[:4]}, by seed" for title, _ in METRICS.values()]
    lines += [_row(header), _row(["---"] * len(header))]
    for method, found in methods.items():
        rounds = [_rounds(found[metric]["rounds_to_95_percent_of_pooled"]) for metric in METRICS]
        lines.append(_row([TITLES[method], _with_interval(found["lesion_error"], 3), *rounds]))
    if same := condition.get("fedavg_largest_difference_db"):
        lines += [
            "",
            "Plain FedAvg is the same as modality-aware where every site has every modality "
            f"(largest difference of a scan in {len(same['seeds'])} seed(s): "
            f"{same['value']:.3f} dB).",
        ]
    return lines


def _rounds(by_seed: Sequence[int | None]) -> str:
    return ", ".join("not reached" if r is None else str(r) for r in by_seed) or "-"


def _cross(condition: Mapping[str, Any]) -> list[str]:
    if "cross_site_psnr_db" not in condition:
        return [NOT_YET]
    matrix = condition["cross_site_psnr_db"]
    sites = list(matrix)
    lines = ["PSNR in dB, all six inputs, mean over seeds; a row is a model, a column where it is "]
    lines[0] += "tested."
    lines += ["", _row(["model of", *sites]), _row(["---"] * (len(sites) + 1))]
    for model, means in matrix.items():
        lines.append(_row([model, *(f"{means[site]:.2f}" for site in sites)]))
    if above := condition.get("above_best_single_site_db"):
        lines += ["", "| site | best single site's model | modality-aware above it (dB) |"]
        lines += ["|---|---|---|"]
        lines += [_row([site, best, _signed(gain)]) for site, (best, gain) in above.items()]
    return lines


def _heading(title: str) -> str:
    return title[0].upper() + title[1:]  # capitalize() would write "asl"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _with_interval(found: Estimate, digits: int) -> str:
    return f"{found.value:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def _signed(found: Estimate) -> str:
    return f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
