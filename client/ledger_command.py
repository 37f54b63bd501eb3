"""``iedn-client ledger``: what was spent, whether the ledger is whole, what a run would cost.

Epsilon is shown rounded up, so that it never reads smaller than it is.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from iedn.errors import ConfigError, LedgerError
from sites.config import SiteConfig
from sites.hash_chain import Entry
from sites.privacy import TIERS

from .accounting import PrivacyEvent
from .ledger import Places, PrivacyLedger
from .ledger_entries import ANSWERED, RECORDED, SPENT, Limits, events_of, head_of, limits_of
from .timed_accounting import epsilon_in_time

NONE_YET = "no privacy has been spent: this site has no ledger yet"

_TOLERANCE = 0.05
"""Between two computations of the same epsilon; the accountants promise no more."""

_COLUMNS = ("entry", "time (UTC)", "for", "noise", "rate", "steps", "epsilon")


@dataclass(frozen=True)
class Plan:
    """A run as it is planned.

    Attributes:
        rounds: of the run.
        steps: of training, a round.
        noise: multiplier: standard deviation over clipping norm.
        patients: that train at this site.
        batch: patients drawn a step, on average.
    """

    rounds: int
    steps: int
    noise: float
    patients: int
    batch: int

    def event(self, rounds: int | None = None) -> PrivacyEvent:
        """What all its rounds, or so many of them, will do.

        Raises:
            ConfigError: a number is out of its range.
        """
        try:
            rate = self.batch / max(self.patients, 1)
            return PrivacyEvent(self.noise, rate, (rounds or self.rounds) * self.steps)
        except ValueError as error:
            allowed = "noise > 0, 0 < batch <= patients, rounds and steps >= 1"
            raise ConfigError(str(error), where="--plan", allowed=allowed) from None

    def text(self) -> str:
        """In words."""
        return (
            f"{self.rounds} rounds of {self.steps} steps, noise multiplier {self.noise:g}, "
            f"{self.batch} of {self.patients} patients a step"
        )


@dataclass(frozen=True)
class Cost:
    """What a planned run would cost.

    Attributes:
        alone: epsilon of the run by itself.
        spent: epsilon of the ledger.
        after: epsilon of both together.
        epsilon_max: what may be spent.
        delta: at which all of these hold.
        affordable_rounds: rounds that the budget allows.
    """

    alone: float
    spent: float
    after: float
    epsilon_max: float
    delta: float
    affordable_rounds: int


@dataclass(frozen=True)
class Asked:
    """What the command was asked for; nothing of it: to show the ledger.

    Attributes:
        verify: check it.
        plan: say what a run would cost.
        record: count such a run as spent.
        recover: put ledger and second file together.
        raise_to: allow so large an epsilon.
        reason: for the last three.
    """

    verify: bool = False
    plan: bool = False
    record: bool = False
    recover: bool = False
    raise_to: float | None = None
    reason: str = ""

    def one(self) -> str:
        """The one thing asked for; empty for none.

        Raises:
            ConfigError: several at once.
        """
        flags = {name: getattr(self, name) for name in ("verify", "plan", "record", "recover")}
        named = [*(n for n, is_set in flags.items() if is_set)]
        named += ["raise_to"] if self.raise_to is not None else []
        if len(named) > 1:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in named)
            raise ConfigError(f"{options} at once", where="ledger", allowed="one of them")
        return named[0] if named else ""


@dataclass(frozen=True)
class Answer:
    """What the command says.

    Attributes:
        parts: for people.
        content: for scripts.
    """

    parts: list[RenderableType]
    content: dict[str, Any]


def answer(config: SiteConfig, asked: Asked, plan: Plan, *, table: bool) -> Answer:
    """Do what was asked for.

    Args:
        config: the site's.
        asked: what to do.
        plan: of --plan and --record.
        table: whether people see a table, or plain lines.

    Raises:
        ConfigError: several things at once, an impossible plan, or no ledger to write to.
        PolicyError: no reason was given.
        LedgerError: the ledger cannot be used or trusted.
        CohortError: a chain is broken.
    """
    match asked.one():
        case "plan":
            cost = cost_of(plan, config)
            return Answer([Text(t) for t in cost_lines(plan, cost)], asdict(plan) | asdict(cost))
        case "verify":
            lines = verification(config)
            return Answer([Text(line) for line in lines], {"verified": lines})
        case "record":
            return _written(required_ledger(config).record(plan.event(), asked.reason))
        case "recover":
            return _written(required_ledger(config).recover(asked.reason))
        case "raise_to":
            limit = asked.raise_to or 0.0
            return _written(required_ledger(config).raise_limit(limit, asked.reason))
    return Answer(list(ledger_parts(config, table=table)), ledger_as_json(config))


def _written(entry: Entry) -> Answer:
    return Answer([Text("  ".join(filter(None, _row(entry))))], entry)


def site_ledger(config: SiteConfig) -> PrivacyLedger | None:
    """The ledger of a site, if it has one; its own limits hold, not those of ``site.toml``."""
    places = places_of(config)
    there = places.ledger.exists() or places.copy.exists()
    return PrivacyLedger(places, accountant=epsilon_in_time) if there else None


def places_of(config: SiteConfig) -> Places:
    """Where a site's ledger is, or would be."""
    return Places.of(config.folder, config.ledger_copy)


def required_ledger(config: SiteConfig) -> PrivacyLedger:
    """The ledger of a site.

    Raises:
        ConfigError: it has none.
    """
    ledger = site_ledger(config)
    if ledger is None:
        where = str(places_of(config).ledger)
        allowed = "training with noise; it makes one"
        raise ConfigError("there is no privacy ledger yet", where=where, allowed=allowed)
    return ledger


def cost_of(plan: Plan, config: SiteConfig) -> Cost:
    """What a planned run would cost on top of all that was spent.

    Raises:
        ConfigError: the plan is not possible.
        LedgerError: the ledger cannot be used or trusted.
    """
    ledger = site_ledger(config)
    entries = ledger.entries() if ledger else []
    policy = _policy_limits(config)
    allowed = limits_of(entries) if entries else policy
    limit, before = min(allowed.epsilon_max, policy.epsilon_max), events_of(entries)

    def after(rounds: int) -> float:
        return epsilon_in_time([*before, plan.event(rounds)], allowed.delta)

    return Cost(
        alone=epsilon_in_time([plan.event()], allowed.delta),
        spent=head_of(entries).epsilon if entries else 0.0,
        after=after(plan.rounds),
        epsilon_max=limit,
        delta=allowed.delta,
        affordable_rounds=_most(plan.rounds, lambda rounds: after(rounds) <= limit),
    )


def cost_lines(plan: Plan, cost: Cost) -> Iterator[str]:
    """For people."""
    yield plan.text()
    yield f"by itself      epsilon {up(cost.alone)} (delta {cost.delta:g})"
    yield f"spent so far   epsilon {up(cost.spent)}"
    verdict = "affordable" if cost.affordable_rounds == plan.rounds else "NOT affordable"
    yield f"together       epsilon {up(cost.after)} of {cost.epsilon_max:g}: {verdict}"
    if cost.affordable_rounds < plan.rounds:
        yield f"the budget allows {cost.affordable_rounds} of the {plan.rounds} rounds"
    if cost.delta * plan.patients >= 1:
        yield f"delta {cost.delta:g} is not less than 1 / {plan.patients} patients: too large"


def verification(config: SiteConfig) -> list[str]:
    """What was checked; both chains are whole and the epsilon is right if this returns.

    Raises:
        LedgerError: the ledger cannot be trusted, or says less than was spent.
        CohortError: a chain is broken.
    """
    ledger, places = site_ledger(config), places_of(config)
    if ledger is None:
        return [NONE_YET]
    entries = ledger.entries()
    head, limits = head_of(entries), limits_of(entries)
    recomputed = epsilon_in_time(events_of(entries), limits.delta)
    if recomputed > head.epsilon + _TOLERANCE:
        raise LedgerError(
            f"{places.ledger}: says epsilon {head.epsilon:.4f}; its entries cost {recomputed:.4f}"
        )
    back = [str(b["number"]) for a, b in pairwise(entries) if b["time"] < a["time"]]
    return [
        f"{places.ledger}: {len(entries)} entries, chain whole",
        f"{places.copy}: in step",
        f"epsilon {up(head.epsilon)}, computed again from all entries: {up(recomputed)}",
        *([f"the clock had been set back at entry {', '.join(back)}"] if back else []),
        f"the coordinator knows: count {head.count}, last hash {head.hash}",
    ]


def ledger_as_json(config: SiteConfig) -> dict[str, Any]:
    """Everything, for scripts."""
    ledger, places = site_ledger(config), places_of(config)
    entries = ledger.entries() if ledger else []
    facts: dict[str, Any] = {
        "ledger": str(places.ledger),
        "copy": str(places.copy),
        "tier": config.privacy.tier,
    }
    facts["policy_epsilon"] = config.privacy.budget
    head: dict[str, Any] = {"count": 0, "hash": None, "epsilon": 0.0}
    if entries:
        head = asdict(head_of(entries)) | asdict(limits_of(entries))
    return facts | head | {"entries": entries}


def ledger_parts(config: SiteConfig, *, table: bool) -> Iterator[RenderableType]:
    """For people: a table, or a line for each entry, then where it stands."""
    ledger = site_ledger(config)
    if ledger is None:
        yield Text(NONE_YET)
        return
    entries = ledger.entries()
    head, limits = head_of(entries), limits_of(entries)
    rows = [_row(entry) for entry in entries if entry["kind"] != ANSWERED]
    if table:
        yield _table(rows)
    else:
        yield from (Text("  ".join(filter(None, row))) for row in rows)
    limit = min(limits.epsilon_max, _policy_limits(config).epsilon_max)
    yield Text(
        f"epsilon {up(head.epsilon)} of {limit:g} spent (delta {limits.delta:g}) over all runs; "
        f"count {head.count}, last hash {head.hash[:12]}"
    )


def up(epsilon: float) -> str:
    """Rounded up to two decimals."""
    return f"{math.ceil(epsilon * 100 - 1e-9) / 100:.2f}" if math.isfinite(epsilon) else "infinite"


def _policy_limits(config: SiteConfig) -> Limits:
    """What ``[privacy]`` allows; where it is off, what its tier ``formal`` would."""
    policy = config.privacy
    return Limits(policy.budget if policy.is_on else TIERS["formal"].epsilon, policy.delta)


def _most(rounds: int, is_affordable: Callable[[int], bool]) -> int:
    """The most rounds, up to ``rounds``, that can be afforded."""
    if is_affordable(rounds):
        return rounds
    low, high = 0, rounds
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_affordable(middle) else (low, middle)
    return low


def _table(rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title="Privacy spent")
    for name in _COLUMNS:
        is_text = name in ("time (UTC)", "for")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=name != "for")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _row(entry: Entry) -> tuple[str, ...]:
    what = entry["kind"]
    if what == SPENT:
        what = f"{entry['run']} round {entry['round']}"
    elif "epsilon_max" in entry:
        what = f"{what}: epsilon_max {entry['epsilon_max']:g}"
    if "reason" in entry:
        what = f"{what}: {entry['reason']}"
    done = ("", "", "")
    if entry["kind"] in (SPENT, RECORDED):
        rate, noise = entry["sample_rate"], entry["noise_multiplier"]
        done = (f"{noise:g}", f"{rate:.4g}", str(entry["steps"]))
    minute = entry["time"][:16].replace("T", " ")
    return (str(entry["number"]), minute, what, *done, up(entry["epsilon"]))
