"""The end of a run: the best model, whole, with its card, to every site.

A round sends a site only the encoders it owns; a site without ASL would otherwise never hold the
ASL encoder. Evaluating sites receive the model too.
"""

import math
from collections.abc import Iterable

from flwr.app import RecordDict

from iedn import __version__, progress
from iedn.errors import ConfigError, ProtocolError, RefusedError
from iedn.files import atomic_write_bytes
from iedn.parameters import groups_of_network
from iedn.protocol.messages import ModelCard, ReleaseReceipt, ReleaseRequest
from iedn.protocol.records import parse, to_record

from .config import FederationConfig
from .exchange import Question, ask
from .federation import Federation, Roster, refusal
from .history import Event
from .report import finished
from .run_folder import RunFolder

CARD = "best.card.json"

_WORST = {"psnr_db_mean": min, "ssim_percent_mean": min, "mae_mean": max}
_DECIMALS = 4


def release_model(federation: Federation, folder: RunFolder) -> Roster:
    """Send the best model and its card to every site of the federation.

    What became of each site is also a line of the history; releasing again is harmless.

    Args:
        federation: grid, registry and configuration; capabilities are not needed.
        folder: of the finished run.

    Returns:
        ``received``, or why not, by site.

    Raises:
        ConfigError: the run is not finished.
    """
    events = folder.events()
    if not finished(events):
        problem = "the run is not finished; a model is released at its end"
        raise ConfigError(problem, where=str(folder.path), allowed="a finished run")
    config = federation.config
    model, model_hash, number = folder.load_best()
    card = model_card(config, events, number, model_hash)
    atomic_write_bytes(folder.path / CARD, card.model_dump_json(indent=2).encode() + b"\n")
    preset = config.effective_preset
    request = ReleaseRequest(
        run=config.run,
        round=number,
        base_hash=model_hash,
        grid=preset.grid,
        network=preset.network,
        card=card,
    )
    roster: Roster = {}

    def on_reply(site: str, record: RecordDict) -> None:
        try:
            _check_receipt(parse(record, ReleaseReceipt), request)
            roster[site] = {"status": "received"}
        except ProtocolError as error:
            roster[site] = refusal(site, error)
        progress.report("models received", len(roster), len(config.sites))

    sites = frozenset(config.sites)
    question = Question(sites, lambda _: to_record(request, model), "query.release", "release")
    missing = ask(federation.grid, federation.registry, question, on_reply, federation.patience)
    roster.update({site: {"status": why} for site, why in missing.items()})
    roster = dict(sorted(roster.items()))
    event = {"event": "release", "round": number, "model_hash": model_hash, "roster": roster}
    folder.append(event)
    return roster


def model_card(
    config: FederationConfig, events: Iterable[Event], number: int, model_hash: str
) -> ModelCard:
    """The card of the model of round ``number``, from the run's history."""
    events = list(events)
    commits = [e for e in events if e["event"] == "commit" and 0 < e["round"] <= number]
    groups = {
        g: _contributors(commits, g) for g in groups_of_network(config.effective_preset.network)
    }
    return ModelCard(
        run=config.run,
        round=number,
        model_hash=model_hash,
        trained_on="phantom (simulation)" if config.simulation else "patients",
        num_training_sites=len(set().union(*groups.values())),
        group_sites={group: len(sites) for group, sites in groups.items()},
        metrics=_card_metrics(events, model_hash),
        code_version=__version__,
    )


def _contributors(commits: list[Event], group: str) -> set[str]:
    """Sites whose accepted update held the group, and moved it."""
    return {
        site
        for commit in commits
        if group not in commit.get("void", {})
        for site, entry in commit["roster"].items()
        if entry["status"] == "accepted" and group in entry["weights"]
    }


def _card_metrics(events: list[Event], model_hash: str) -> dict[str, float]:
    """Mean over sites and worst site of each metric, for the splits this model was measured on."""
    metrics: dict[str, float] = {}
    for event in events:
        if event["event"] != "evaluation" or event["model_hash"] != model_hash:
            continue
        if event["evaluation"] != "metrics" or not event["sites"]:
            continue
        split, results = event["split"], event["sites"].values()
        metrics[f"{split}_sites"] = float(len(results))
        metrics[f"{split}_scans"] = float(sum(r["num_scans"] for r in results))
        for name, worst in _WORST.items():
            values = [float(r["metrics"][name]) for r in results if name in r["metrics"]]
            if values:
                metrics[f"{split}_{name}"] = round(math.fsum(values) / len(values), _DECIMALS)
                metrics[f"{split}_{name}_worst_site"] = round(worst(values), _DECIMALS)
    return metrics


def _check_receipt(receipt: ReleaseReceipt, request: ReleaseRequest) -> None:
    came = (receipt.run, receipt.round, receipt.base_hash)
    if came != (request.run, request.round, request.base_hash):
        raise RefusedError("wrong-base", "the receipt is for another model")
