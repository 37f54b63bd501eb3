"""A whole run: join, rounds, best model, final evaluation; and going on after any stop."""

import logging
import time
from dataclasses import dataclass

from flwr.serverapp import Grid

from iedn import progress

from .config import FederationConfig
from .downlink import Offer
from .evaluation import ModelUnderTest, best_round, evaluate
from .federation import Call, Federation, QuorumError, check_quorum, join
from .gate import SeenLedger
from .history import Event
from .masked_rounds import SpentRoundError, masked_round
from .registry import SiteRegistry
from .rounds import Facts, RoundState, seen_ledgers, train_round
from .run_folder import BEST, RunFolder

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a finished run has reached.

    Attributes:
        rounds: committed rounds.
        model_hash: hash of the model after the last round.
        best_round: round of the model in ``best.safetensors``.
        best_hash: its hash.
    """

    rounds: int
    model_hash: str
    best_round: int
    best_hash: str


def run_federation(
    grid: Grid, registry: SiteRegistry, config: FederationConfig, folder: RunFolder
) -> RunResult:
    """Run a federation to its end, from wherever its folder says it stands.

    Raises:
        QuorumError: too few sites; everything committed so far is kept.
    """
    with folder.exclusive():
        try:
            return _run(Federation(grid, registry, config), folder)
        except QuorumError as error:
            folder.append({"event": "incomplete", "reason": str(error), "roster": error.roster})
            raise


def _run(federation: Federation, folder: RunFolder) -> RunResult:
    count = federation.config.rounds.count
    state = _initial_or_resumed(federation.config, folder)
    federation, absent = _opened(federation, folder)
    _evaluate_if_missing(federation, folder, state)
    while state.number < count:
        progress.report("rounds", state.number, count)
        federation, absent = _welcomed(federation, absent, folder)
        state = _one_round(federation, folder, state)
    progress.report("rounds", state.number, count)
    federation, _ = _welcomed(federation, absent, folder)
    return _finish(federation, folder, state)


def _opened(federation: Federation, folder: RunFolder) -> tuple[Federation, frozenset[str]]:
    """All sites are asked to join; those of the last round, or all at first, are waited for.

    Raises:
        QuorumError: fewer training sites than the quorum, or a required one is missing.
    """
    config = federation.config
    sites = frozenset(config.sites)
    last = folder.last_commit()
    took_part = {
        site
        for site, entry in (last or {}).get("roster", {}).items()
        if entry["status"] == "accepted"
    }
    call = Call(sites, frozenset(took_part) or sites, config.rounds.join_timeout_s)
    return _joined(federation, call, folder)


def _welcomed(
    federation: Federation, absent: frozenset[str], folder: RunFolder
) -> tuple[Federation, frozenset[str]]:
    """Sites that were away and are online now take part from here on."""
    back = absent & set(federation.registry.online(federation.grid)) if absent else absent
    if not back:
        return federation, absent
    call = Call(back, frozenset(), federation.config.rounds.offline_grace_s)
    federation, still = _joined(federation, call, folder)
    return federation, (absent - back) | still


def _joined(
    federation: Federation, call: Call, folder: RunFolder
) -> tuple[Federation, frozenset[str]]:
    federation, roster = join(federation, call)
    check_quorum(federation.config, federation.trainers(), roster, "join")
    folder.append({"event": "join", "roster": roster, "sites": _declared(federation)})
    turned_down = ("joined", "refused", "failed")
    return federation, frozenset(s for s, e in roster.items() if e["status"] not in turned_down)


def _initial_or_resumed(config: FederationConfig, folder: RunFolder) -> RoundState:
    last = folder.last_commit()
    if last is None:
        from iedn.model import build_network
        from iedn.parameters import state_by_group

        model = state_by_group(build_network(config.effective_preset.network, config.seed))
        last = folder.commit(0, model, {}, {"accepted_norms": []})
    else:
        _log.info("going on after round %d", last["round"])
    model, moments = folder.load(last)
    events = folder.events()
    commits = [e for e in events if e["event"] == "commit" and e["round"] > 0]
    norms = [list(e["accepted_norms"]) for e in commits]
    ledgers: dict[str, SeenLedger] = {}
    for event in events:
        ledgers |= seen_ledgers(event.get("roster", {}))
    return RoundState(last["round"], model, last["model_hash"], moments, norms, ledgers)


def _one_round(federation: Federation, folder: RunFolder, state: RoundState) -> RoundState:
    started = time.monotonic()
    try:
        after, facts = _trained(federation, folder, state)
    except SpentRoundError as error:
        _commit(folder, error.state, _timed(error.facts, started))
        raise
    _commit(folder, after, _timed(facts, started))
    _log.info("round %d committed: model %s", after.number, after.model_hash[:12])
    _evaluate_if_missing(federation, folder, after)
    return after


def _trained(
    federation: Federation, folder: RunFolder, state: RoundState
) -> tuple[RoundState, Facts]:
    if federation.config.secure_aggregation == "on":
        return masked_round(federation, folder, state)
    return train_round(federation, state)


def _commit(folder: RunFolder, state: RoundState, facts: Facts) -> None:
    folder.commit(state.number, state.model, state.moments, facts, model_hash=state.model_hash)


def _timed(facts: Facts, started: float) -> Facts:
    """With the seconds from asking the sites to the next model."""
    return {**facts, "seconds": round(time.monotonic() - started, 1)}


def _evaluate_if_missing(federation: Federation, folder: RunFolder, state: RoundState) -> None:
    """Validate the state's model unless the history has it, and keep the best one."""
    if state.number == 0:
        return
    if state.number not in {e["round"] for e in _validations(folder)}:
        subject = ModelUnderTest(state.number, state.offer)
        folder.append(evaluate(federation, subject, split="validation", evaluation="metrics"))
    best = best_round(_validations(folder), federation.config.rounds.selection)
    stored = folder.path / BEST
    if best in (state.number, None) or not stored.exists():
        folder.save_best(_commit_of(folder, state.number))


def _finish(federation: Federation, folder: RunFolder, state: RoundState) -> RunResult:
    model, best_hash, number = folder.load_best()
    done = {
        (e["split"], e["evaluation"], e["model_hash"])
        for e in folder.events()
        if e["event"] == "evaluation"
    }
    subject = ModelUnderTest(number, Offer(model, best_hash))
    if ("test", "metrics", best_hash) not in done:
        folder.append(evaluate(federation, subject, split="test", evaluation="metrics"))
    if federation.evaluators() and not _all_external_answered(folder, best_hash):
        folder.append(evaluate(federation, subject, split="test", evaluation="diagnostic"))
    result = RunResult(state.number, state.model_hash, number, best_hash)
    folder.append({"event": "finished", **vars(result)})
    return result


def _all_external_answered(folder: RunFolder, model_hash: str) -> bool:
    """Whether the numbers of all external sites are in.

    A site that has to look at its numbers first refuses them; it is asked again when the same
    command is given on the finished run.
    """
    asked = [
        e
        for e in folder.events()
        if e["event"] == "evaluation"
        and (e["evaluation"], e["model_hash"]) == ("diagnostic", model_hash)
    ]
    return bool(asked) and all(s["status"] == "accepted" for s in asked[-1]["roster"].values())


def _validations(folder: RunFolder) -> list[Event]:
    events = folder.events()
    return [e for e in events if e["event"] == "evaluation" and e["split"] == "validation"]


def _commit_of(folder: RunFolder, number: int) -> Event:
    commits = [e for e in folder.events() if e["event"] == "commit" and e["round"] == number]
    return commits[-1]


def _declared(federation: Federation) -> dict[str, object]:
    return {
        site: {
            "role": c.role,
            "num_training_scans": c.num_training_scans,
            "scans_by_modality": {str(m): n for m, n in c.scans_by_modality.items()},
            "code_version": c.code_version,
        }
        for site, c in federation.capabilities.items()
    }
