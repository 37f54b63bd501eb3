"""A site's part in a round under secure aggregation: its key, and the one masked update.

What may go wrong is settled by order. The key is on disk before its public half leaves; the masked
update is on disk before it is logged, logged before it leaves, and the key's private half is erased
before it leaves. A site that is killed in between has sent nothing, or sends the same bytes again.
"""

from iedn.errors import PolicyError, RefusedError
from iedn.masking import (
    MaskKeys,
    MaskRound,
    RingGroups,
    check_mask_key,
    masked,
    members_of,
)
from iedn.parameters import groups_for
from iedn.peers import PublicKeys
from iedn.protocol.messages import MaskKeyReply, MaskKeyRequest, TrainReply, TrainRequest
from sites.changes import Changes, decoded
from sites.egress import TrainingCounts
from sites.privacy import check_demand

from .identity import read_private_key, signing_key_file
from .kept_reply import keep_reply
from .mask_key_file import MaskKeyFile
from .peers import peer_keys
from .session import SiteSession
from .spending import check_affordable


def answer_mask_key(session: SiteSession, request: MaskKeyRequest) -> MaskKeyReply:
    """This site's signed key for a round; the same one as often as it is asked for.

    Raises:
        PolicyError: the site does not train, its policy lets no update leave, the run asks for
            more privacy than it has, or its privacy budget does not allow the round.
        ConfigError: the site's ``[privacy]`` does not fit its cohort.
        LedgerError: its privacy ledger cannot be used or trusted.
        RefusedError: ``no-peers``: no list of sites has been accepted here.
        IdentityError: the site's key or its list cannot be used.
    """
    if session.config.role != "train":
        raise PolicyError("this site only evaluates; it was asked for a mask key")
    file = MaskKeyFile(session.config.folder, MaskRound.of(request))
    mask_key = file.public()
    if mask_key is None and not session.egress.masked_rounds.is_spent(request.run, request.round):
        peer_keys(session.config)
        identity = read_private_key(signing_key_file(session.config))
        mask_key = file.create(session.config.name, _to_send(session, request), identity)
    return session.egress.mask_key(request, mask_key)


class MaskedRelease:
    """The release of one masked update, checked before any training is done for it.

    Args:
        session: the site's.
        request: a request with mask keys.

    Raises:
        RefusedError: ``mask-roster``, ``mask-signature``, ``unknown-peer`` or
            ``no-peers``: the keys are not those of this round's sites as this site knows them.
        IdentityError: the site's own key or list cannot be used.
    """

    def __init__(self, session: SiteSession, request: TrainRequest) -> None:
        self._session, self._request = session, request
        self._file = MaskKeyFile(session.config.folder, MaskRound.of(request))
        own = self._file.own()
        if own is None:
            text = f"this site has made no mask key for round {request.round}"
            raise RefusedError("mask-roster", text)
        self._own, self._keys = own, dict(request.mask_keys or {})
        if self._keys.get(own.site) != self._file.public():
            raise RefusedError("mask-roster", "the mask keys do not hold this site's own")
        check_mask_keys(request, self._keys, peer_keys(session.config))

    def release(self, reply: TrainReply, checked: Changes) -> tuple[TrainReply, RingGroups]:
        """Mask what the site's gate let pass; kept, logged, and the key erased."""
        tensors = masked(decoded(checked), reply.weights, self._own, self._keys)
        keep_reply(self._session.config.folder, self._request, reply, tensors)
        self._session.egress.masked_update(reply, tensors)
        self._file.erase_private()
        return reply, tensors


def check_mask_keys(request: TrainRequest, keys: MaskKeys, peers: PublicKeys) -> None:
    """Refuse keys that are not those of sites known here, made for this very round.

    Raises:
        RefusedError: ``unknown-peer``, ``mask-signature`` or ``mask-roster``.
    """
    for site, key in sorted(keys.items()):
        if site not in peers:
            raise RefusedError("unknown-peer", f"{site} is not on the list accepted here")
        check_mask_key(key, peers[site], MaskRound.of(request), site)
    if len({key.key for key in keys.values()}) < len(keys):
        raise RefusedError("mask-roster", "two sites have the same mask key")
    counted = {group: len(members_of(keys, group)) for group in request.group_sites}
    if counted != request.group_sites:
        text = f"group_sites says {request.group_sites}; signed for are {counted}"
        raise RefusedError("mask-roster", text)


def _to_send(session: SiteSession, request: MaskKeyRequest) -> tuple[str, ...]:
    """The groups that the site will train and send; what would stop it stops it here."""
    check_demand(session.config.privacy, request.privacy)
    counts = session.counts(request.grid)
    groups = session.egress.mask_groups(_owned(request, counts), counts)
    if not session.config.privacy.is_on:
        return groups
    from .private_training import plan_round  # Opacus takes seconds to import

    planned = plan_round(session, request, groups)
    check_affordable(session, request, planned.event)
    return tuple(sorted(planned.groups))


def _owned(request: MaskKeyRequest, counts: TrainingCounts) -> tuple[str, ...]:
    if request.network.architecture != "iedn":
        return groups_for(())
    return groups_for(m for m in request.network.modalities if m in counts.scans_by_modality)


def forget_mask_key(session: SiteSession, request: TrainRequest) -> None:
    """Erase the private half of a round whose masked update leaves once more, from disk."""
    if request.mask_keys is not None:
        MaskKeyFile(session.config.folder, MaskRound.of(request)).erase_private()
