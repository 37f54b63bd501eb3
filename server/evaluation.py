"""Evaluating a committed model at the sites, and choosing the best one.

Only aggregates come back. Sites count alike in the selection score, so that the largest hospital
does not decide alone; the worst site is always reported.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import stdev
from typing import Any

from flwr.app import RecordDict

from iedn import progress
from iedn.errors import ProtocolError, RefusedError
from iedn.evaluation.statistics import SiteAreas
from iedn.protocol.messages import (
    ComparisonName,
    EvaluateReply,
    EvaluateRequest,
    EvaluationKind,
    Split,
)
from iedn.protocol.records import parse

from .config import SelectionRule
from .downlink import Offer
from .exchange import Question, ask
from .federation import Federation, Roster, refusal
from .outgoing import Outgoing
from .stratified import checked_areas, stratified

SELECTION_METRIC = "psnr_db_mean"
_MEAN = "_mean"

Facts = dict[str, Any]


@dataclass(frozen=True)
class ModelUnderTest:
    """A committed model to evaluate."""

    round_number: int
    offer: Offer

    @property
    def model_hash(self) -> str:
        """Its hash."""
        return self.offer.model_hash


def evaluate(
    federation: Federation,
    subject: ModelUnderTest,
    *,
    split: Split,
    evaluation: EvaluationKind,
) -> Facts:
    """Evaluate a model at every site that can, and return the facts for the history.

    ``metrics`` goes to training sites, ``diagnostic`` to evaluating ones. Sites that do not
    answer are in the roster; an evaluation never ends a run.
    """
    is_metrics = evaluation == "metrics"
    sites = federation.trainers() if is_metrics else federation.evaluators()
    results: dict[str, Facts] = {}
    areas: dict[str, dict[ComparisonName, SiteAreas]] = {}
    roster: Roster = {}
    outgoing = Outgoing(federation, subject.offer)
    label = f"round {subject.round_number}: {split if is_metrics else 'external'} evaluation"

    def request(site: str) -> RecordDict:
        message = _request(federation, subject, split, evaluation)
        hashes = outgoing.hashes(site)
        return outgoing.record(site, message.model_copy(update={"group_hashes": hashes}))

    def on_reply(site: str, record: RecordDict) -> bool:
        if outgoing.must_go_again(site, record):
            return True
        try:
            reply = parse(record, EvaluateReply)
            federation.holdings.note(site, reply.holds)
            reply = _checked(reply, subject, split, evaluation)
            areas[site] = checked_areas(reply.paired_areas)
            results[site] = _facts(site, reply, areas[site])
            roster[site] = {"status": "accepted"}
        except ProtocolError as error:
            roster[site] = refusal(site, error)
        progress.report(label, len(roster), len(sites))
        return False

    question = Question(frozenset(sites), request, "evaluate", label)
    missing = ask(federation.grid, federation.registry, question, on_reply, federation.patience)
    roster.update({site: {"status": why} for site, why in missing.items()})
    return {
        "event": "evaluation",
        "round": subject.round_number,
        "model_hash": subject.model_hash,
        "split": split,
        "evaluation": evaluation,
        "sites": dict(sorted(results.items())),
        "roster": dict(sorted(roster.items())),
        "bytes_down": dict(sorted(outgoing.sent_bytes.items())),
        "score": score(results, federation.config.rounds.selection) if is_metrics else None,
        "over_sites": over_sites(results),
        "stratified": stratified(areas),
    }


def _facts(site: str, reply: EvaluateReply, areas: dict[ComparisonName, SiteAreas]) -> Facts:
    """One site's line of the event; an external one's areas and the numbers they come from."""
    facts: Facts = {"metrics": reply.metrics, "num_scans": reply.num_scans}
    if not areas:
        return facts
    sent = {name: numbers.model_dump() for name, numbers in reply.paired_areas.items()}
    return facts | {"areas": stratified({site: areas}), "paired_areas": sent}


def over_sites(results: Mapping[str, Facts]) -> dict[str, Facts]:
    """Each metric over the sites that gave it, all sites alike.

    Returns:
        By name of the metric (``with_asl_psnr_db``): mean, SD (n - 1; None for one site), the worst
        site's value and name, and how many sites.
    """
    found: dict[str, Facts] = {}
    names = {name for result in results.values() for name in result["metrics"]}
    for full in sorted(name for name in names if name.endswith(_MEAN)):
        values = {s: float(r["metrics"][full]) for s, r in results.items() if full in r["metrics"]}
        name = full.removesuffix(_MEAN)
        worst = max(values, key=lambda site: _badness(name, values[site]))
        found[name] = {
            "mean": math.fsum(values.values()) / len(values),
            "sd": stdev(values.values()) if len(values) > 1 else None,
            "worst": values[worst],
            "worst_site": worst,
            "sites": len(values),
        }
    return found


def _badness(name: str, value: float) -> float:
    if name.endswith(("psnr_db", "ssim_percent")):
        return -value
    return abs(value)


def score(results: dict[str, Facts], rule: SelectionRule) -> float | None:
    """What the best model is chosen by; None if no site gave the metric."""
    values = [
        float(r["metrics"][SELECTION_METRIC])
        for r in results.values()
        if SELECTION_METRIC in r["metrics"]
    ]
    if not values:
        return None
    return min(values) if rule == "worst-site-psnr" else math.fsum(values) / len(values)


def best_round(evaluations: list[Facts], rule: SelectionRule) -> int | None:
    """Round of the best validated model; the later of two equal ones; None if none was scored."""
    scored = [
        (e["score"], e["round"])
        for e in evaluations
        if e["split"] == "validation" and e["score"] is not None
    ]
    if not scored:
        return None
    if rule == "last":
        return int(max(number for _, number in scored))
    return int(max(scored)[1])


def _request(
    federation: Federation, subject: ModelUnderTest, split: Split, evaluation: EvaluationKind
) -> EvaluateRequest:
    config = federation.config
    preset = config.effective_preset
    return EvaluateRequest(
        run=config.run,
        round=subject.round_number,
        base_hash=subject.model_hash,
        grid=preset.grid,
        network=preset.network,
        split=split,
        evaluation=evaluation,
        flip_average=config.flip_average,
    )


def _checked(
    reply: EvaluateReply, subject: ModelUnderTest, split: Split, evaluation: EvaluationKind
) -> EvaluateReply:
    came = (reply.round, reply.base_hash, reply.split, reply.evaluation)
    if came != (subject.round_number, subject.model_hash, split, evaluation):
        raise RefusedError("wrong-round", "answers another evaluation")
    return reply
