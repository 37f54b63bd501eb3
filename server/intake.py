"""The replies of a round, one site after the other: asked for, admitted or refused, and noted."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from flwr.app import RecordDict

from iedn import progress
from iedn.errors import ProtocolError
from iedn.protocol.messages import TrainRequest

from .exchange import Question, ask
from .federation import Federation, Roster, refusal
from .outgoing import Outgoing

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Intake:
    """What becomes of each site in a round.

    Attributes:
        label: of the round.
        asked: the sites.
        outgoing: sends them the model.
        request: what a site is asked.
        admit: takes a reply into the round, and gives the roster's entry; or raises
            ``ProtocolError``.
        roster: an entry a site that has answered, or never will.
    """

    label: str
    asked: Collection[str]
    outgoing: Outgoing
    request: Callable[[str], TrainRequest]
    admit: Callable[[str, RecordDict], dict[str, Any]]
    roster: Roster = field(default_factory=dict)

    def collect(self, federation: Federation) -> None:
        """Ask all sites; return when all have answered, or the deadline is over."""
        sites = frozenset(self.asked)
        required = frozenset(s for s in sites if federation.config.sites[s].required)
        question = Question(sites, self.build, "train", self.label, needed=required)
        missing = ask(
            federation.grid, federation.registry, question, self.take, federation.patience
        )
        self.roster.update({site: {"status": why} for site, why in missing.items()})

    def build(self, site: str) -> RecordDict:
        """The request with what the site needs of the model."""
        return self.outgoing.record(site, self.request(site))

    def take(self, site: str, record: RecordDict) -> bool:
        """Admit or refuse a reply; whether the site has to be asked again, with the whole model."""
        if self.outgoing.must_go_again(site, record):
            return True
        try:
            self.roster[site] = self.admit(site, record)
        except ProtocolError as error:
            self.roster[site] = refusal(site, error)
        else:
            _log.info("%s: %s: update accepted", self.label, site)
        done = sum(other in self.roster for other in self.asked)
        progress.report(f"{self.label}: replies", done, len(self.asked))
        return False
