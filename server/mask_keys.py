"""The first half of a masked round: who takes part, with which signed key.

What is agreed on is written into the history before any site is asked to train. A coordinator that
is started again goes on with the same keys: a site masks an update once, for these sites alone.
"""

from dataclasses import asdict, dataclass, field

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from flwr.app import RecordDict

from iedn.errors import ProtocolError, RefusedError
from iedn.masking import MaskRound, check_mask_key, members_of
from iedn.parameters import groups_of_network
from iedn.protocol.messages import MaskKey, MaskKeyReply, MaskKeyRequest
from iedn.protocol.records import parse, to_record

from .admission import admitted_keys
from .exchange import Question, ask
from .federation import Federation, Owners, Roster, refusal
from .run_folder import RunFolder

EVENT = "mask-keys"
SPENT = "mask-spent"


@dataclass(frozen=True)
class Agreement:
    """Who takes part in a masked round.

    Attributes:
        keys: signed keys, by site.
        owners: of each group, among these sites. A coordinator that is started again says the
            same of them, whoever is back by then: another request would be refused.
        roster: why other sites do not.
    """

    keys: dict[str, MaskKey]
    owners: Owners
    roster: Roster = field(default_factory=dict)


def agreed_before(folder: RunFolder, round_: MaskRound) -> Agreement | None:
    """What a coordinator that was stopped in this very round had agreed on."""
    for event in reversed(folder.events()):
        if event["event"] == EVENT:
            if (event["round"], event["base_hash"]) != (round_.number, round_.base_hash):
                return None
            keys = {site: MaskKey.model_validate(key) for site, key in event["keys"].items()}
            return Agreement(keys, Owners(**event["owners"]), event["roster"])
    return None


def ask_for_keys(federation: Federation, folder: RunFolder, round_: MaskRound) -> Agreement:
    """Ask all training sites for their keys; those whose reply is good take part."""
    preset = federation.config.effective_preset
    request = MaskKeyRequest(
        run=round_.run,
        round=round_.number,
        base_hash=round_.base_hash,
        grid=preset.grid,
        network=preset.network,
        training=federation.config.training,
        privacy=federation.config.privacy,
    )
    identities = admitted_keys(folder.path)
    keys: dict[str, MaskKey] = {}
    roster: Roster = {}

    def on_reply(site: str, record: RecordDict) -> None:
        try:
            reply = parse(record, MaskKeyReply)
            if reply.mask_key is None:
                raise RefusedError(SPENT, "has sent a masked update of this round before")
            _check(federation, site, reply, request, identities.get(site))
            keys[site] = reply.mask_key
        except ProtocolError as error:
            roster[site] = refusal(site, error)

    sites = frozenset(federation.trainers())
    required = frozenset(s for s in sites if federation.config.sites[s].required)
    label = f"round {round_.number}: mask keys"
    question = Question(
        sites, lambda _: to_record(request), "query.mask_key", label, needed=required
    )
    missing = ask(federation.grid, federation.registry, question, on_reply, federation.patience)
    roster.update({site: {"status": why} for site, why in missing.items()})
    groups = groups_of_network(preset.network)
    owners = federation.owners({group: members_of(keys, group) for group in groups})
    return Agreement(dict(sorted(keys.items())), owners, dict(sorted(roster.items())))


def remember(folder: RunFolder, round_: MaskRound, agreement: Agreement) -> None:
    """Write down what was agreed on, before anybody acts on it."""
    keys = {site: key.model_dump(mode="json") for site, key in agreement.keys.items()}
    folder.append(
        {
            "event": EVENT,
            "round": round_.number,
            "base_hash": round_.base_hash,
            "keys": keys,
            "owners": asdict(agreement.owners),
            "roster": agreement.roster,
        }
    )


def _check(
    federation: Federation,
    site: str,
    reply: MaskKeyReply,
    request: MaskKeyRequest,
    identity: EllipticCurvePublicKey | None,
) -> None:
    round_ = MaskRound.of(request)
    if MaskRound.of(reply) != round_:
        raise RefusedError("wrong-round", f"answers round {reply.round} of {reply.run}")
    if identity is None or reply.mask_key is None:
        raise RefusedError("mask-signature", f"no key of {site} is admitted")
    foreign = sorted(set(reply.mask_key.groups) - set(federation.groups_of(site)))
    if foreign:
        raise RefusedError("wrong-group", f"signs for {foreign}, which it did not declare")
    check_mask_key(reply.mask_key, identity, round_, site)
