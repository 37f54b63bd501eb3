"""The drawings of a run's report; all of aggregates."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iedn.html_page import COLOURS, GREY, MARKERS, figure

from .history import Event

LIMITS = 1.96
"""Standard deviations on either side of the mean that hold 95 % of single differences."""
MOST_IN_LEGEND = 24

_CURVES = (("psnr_db", "PSNR (dB)"), ("ssim_percent", "SSIM (%)"))
_STRATA = (("", "all scans"), ("with_asl_", "with ASL"), ("without_asl_", "without ASL"))
_AREAS = (("synthetic_cbv", "synthetic CBV", COLOURS[0]), ("asl", "ASL", COLOURS[1]))


def curves(rounds: Sequence[Event], best: int | None, title: str) -> Figure:
    """Validation PSNR and SSIM a round: a line a site, their mean, the best round marked."""
    made = figure(10, 3.8)
    sites = sorted({s for e in rounds for s in e["sites"]})
    for axes, (metric, label) in zip(made.subplots(1, 2), _CURVES, strict=True):
        for number, site in enumerate(sites):
            colour = COLOURS[number % len(COLOURS)]
            marker = MARKERS[number % len(MARKERS)]
            x, y = _columns(_points(rounds, site, f"{metric}_mean"))
            axes.plot(x, y, marker=marker, markersize=4, linewidth=1.2, color=colour, label=site)
        means = [
            (e["round"], e["over_sites"][metric]["mean"])
            for e in rounds
            if metric in e["over_sites"]
        ]
        if len(sites) > 1 and means:
            x, y = _columns(means)
            axes.plot(x, y, color="black", linewidth=2.2, label="mean of sites")
        if best is not None:
            axes.axvline(best, color=GREY, linestyle=":", label="best round")
        axes.set(xlabel="round", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    if 0 < len(sites) <= MOST_IN_LEGEND:
        handles, labels = made.axes[0].get_legend_handles_labels()
        made.legend(
            handles, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False
        )
    made.suptitle(title, fontsize=11)
    return made


def bias_limits(sites: Mapping[str, Mapping[str, float]]) -> Figure | None:
    """Bias and 95 % limits of the brain mean of each site, from mean and SD; None without."""
    known = {s: m for s, m in sites.items() if {"bias_mean", "bias_sd"} <= set(m)}
    if not known:
        return None
    made = figure(8, 0.9 + 0.36 * len(known))
    axes = made.subplots()
    for row, (site, metrics) in enumerate(reversed(known.items())):
        mean, half = metrics["bias_mean"], LIMITS * metrics["bias_sd"]
        axes.plot([mean - half, mean + half], [row, row], color=COLOURS[0], linewidth=2)
        axes.plot([mean - half, mean + half], [row, row], "|", color=COLOURS[0], markersize=10)
        axes.plot(mean, row, "o", color=COLOURS[0])
        axes.text(1.01, row, site, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set(yticks=[], ylim=(-0.6, len(known) - 0.4))
    axes.set_xlabel("synthetic minus measured CBV, mean over the brain (brain mean = 0.25)")
    return made


def forest(lines: Sequence[tuple[str, Mapping[str, Any]]]) -> Figure:
    """Areas under ROC curves with intervals; a line a site and comparison, the stratified last."""
    made = figure(8, 1.2 + 0.5 * len(lines))
    axes = made.subplots()
    for row, (name, found) in enumerate(reversed(lines)):
        for offset, (key, title, colour) in zip((0.13, -0.13), _AREAS, strict=True):
            label = title if row == 0 else None
            _interval(axes, found[key], row + offset, colour, label)
        axes.text(1.01, row, name, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.axvline(0.5, color=GREY, linestyle=":", linewidth=1)
    axes.set(yticks=[], ylim=(-0.6, len(lines) - 0.4), xlim=(0.0, 1.0))
    axes.set_xlabel("area under the ROC curve, 95 % interval")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False)
    return made


def strata(sites: Mapping[str, Mapping[str, float]], metric: str, label: str) -> Figure | None:
    """A metric of each site over all scans, those with and those without ASL; None without."""
    if not any(f"{_STRATA[1][0]}{metric}_mean" in m for m in sites.values()):
        return None
    made = figure(8, 0.9 + 0.36 * len(sites))
    axes = made.subplots()
    for number, (prefix, title) in enumerate(_STRATA):
        points = [
            (m[f"{prefix}{metric}_mean"], row)
            for row, m in enumerate(reversed(list(sites.values())))
            if f"{prefix}{metric}_mean" in m
        ]
        if points:
            x, y = _columns(points)
            colour, marker = (GREY, *COLOURS)[number], MARKERS[number]
            axes.plot(x, y, linestyle="none", color=colour, marker=marker, label=title)
    for row, site in enumerate(reversed(list(sites))):
        axes.text(1.01, row, site, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.set(yticks=[], ylim=(-0.6, len(sites) - 0.4), xlabel=label)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False)
    return made


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _interval(
    axes: Axes, found: Mapping[str, float], row: float, colour: str, label: str | None
) -> None:
    axes.plot([found["low"], found["high"]], [row, row], color=colour, linewidth=1.8)
    axes.plot(found["value"], row, "s", color=colour, markersize=6, label=label)


def _points(rounds: Sequence[Event], site: str, metric: str) -> list[tuple[float, float]]:
    return [
        (e["round"], e["sites"][site]["metrics"][metric])
        for e in rounds
        if metric in e["sites"].get(site, {}).get("metrics", {})
    ]
