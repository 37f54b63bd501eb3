"""What a simulated run reached, beside what each site could predict without a network."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iedn import progress
from iedn.files import atomic_write_bytes
from server.config import FederationConfig
from server.history import Event
from server.report import finished
from server.run_folder import RunFolder
from sites.config import SITE_FILE, load_site_config
from sites.dataset import PreparedCohort, prepare_cohort

from . import baselines
from .baselines import Quality

SUMMARY = "summary.json"


@dataclass(frozen=True)
class SiteResult:
    """One training site's held-out test patients.

    Attributes:
        site: its name.
        num_scans: held-out scans, exactly (this is a simulation).
        federated: the best model.
        baselines: predictors fitted on the site's own training scans, by name.
    """

    site: str
    num_scans: int
    federated: Quality
    baselines: dict[str, Quality]

    @property
    def margin_db(self) -> float:
        """PSNR of the network minus the best baseline's."""
        return self.federated.psnr_db - max(q.psnr_db for q in self.baselines.values())

    @property
    def margin_ssim(self) -> float:
        """SSIM of the network minus the best baseline's, in points."""
        return self.federated.ssim_percent - max(q.ssim_percent for q in self.baselines.values())


@dataclass(frozen=True)
class RunSummary:
    """All results of a run; on a phantom, and said so.

    Attributes:
        run: its name.
        label: what the numbers are.
        model_hash: of the model after the last round.
        best_round: round of the model that was tested.
        sites: training sites.
        external: areas under ROC curves of the evaluating sites, by site and comparison.
        stratified: the same over all of them.
    """

    run: str
    label: str
    model_hash: str
    best_round: int
    sites: tuple[SiteResult, ...]
    external: dict[str, dict[str, Any]]
    stratified: dict[str, Any]


def summarise(out: Path, config: FederationConfig) -> RunSummary:
    """Gather a finished run's results, fit the baselines, write ``summary.json``."""
    events = RunFolder(out, config).events()
    end = finished(events)
    test = _evaluation(events, "metrics", end["best_hash"])["sites"]
    external = _evaluation(events, "diagnostic", end["best_hash"])
    results = []
    for number, (site, result) in enumerate(sorted(test.items())):
        metrics = result["metrics"]
        federated = Quality(metrics["psnr_db_mean"], metrics["ssim_percent_mean"])
        cohort = cohort_of(out, config, site)
        results.append(SiteResult(site, len(cohort.test), federated, _baselines(cohort)))
        progress.report("baselines", number + 1, len(test))
    summary = RunSummary(
        run=config.run,
        label="phantom results; they say nothing about patients",
        model_hash=end["model_hash"],
        best_round=end["best_round"],
        sites=tuple(results),
        external={site: r.get("areas", {}) for site, r in external["sites"].items()},
        stratified=external["stratified"],
    )
    content = json.dumps(summary_fields(summary), indent=2, sort_keys=True)
    atomic_write_bytes(out / SUMMARY, content.encode() + b"\n")
    return summary


def summary_fields(summary: RunSummary) -> dict[str, Any]:
    """The summary as plain values, margins included."""
    fields = asdict(summary)
    for entry, site in zip(fields["sites"], summary.sites, strict=True):
        entry["margin_db"] = site.margin_db
        entry["margin_ssim"] = site.margin_ssim
    return fields


def cohort_of(out: Path, config: FederationConfig, site: str) -> PreparedCohort:
    """A virtual site's cohort on the run's grid; from the cache after a run."""
    site_config = load_site_config(out / "sites" / site / SITE_FILE)
    return prepare_cohort(site_config, config.effective_preset.grid)


def _baselines(cohort: PreparedCohort) -> dict[str, Quality]:
    training = [cohort.train[i] for i in range(len(cohort.train))]
    held_out = [cohort.test[i] for i in range(len(cohort.test))]
    fitted = baselines.fit(training, {s.modalities for s in held_out})
    return baselines.measure(fitted, held_out)


def _evaluation(events: list[Event], kind: str, model_hash: str) -> dict[str, Any]:
    found = [
        e
        for e in events
        if e["event"] == "evaluation"
        and (e["split"], e["evaluation"], e["model_hash"]) == ("test", kind, model_hash)
    ]
    return dict(found[-1]) if found else {"sites": {}, "stratified": {}}
