"""One committed model on its way to the sites of a federation, whatever it is asked to be used for.

Each site is sent what it lacks by its own account. One that turns out to lack more is asked again,
with everything.
"""

from flwr.app import RecordDict

from iedn.protocol.messages import ProtocolMessage
from iedn.protocol.records import array_bytes

from .downlink import Offer
from .encoded import EncodedModel
from .federation import Federation


class Outgoing:
    """A model, to be sent to each site as far as the site does not hold it.

    Args:
        federation: whose sites.
        offer: the model.

    Attributes:
        sent_bytes: of arrays, by site.
    """

    def __init__(self, federation: Federation, offer: Offer) -> None:
        self._federation = federation
        self._model = EncodedModel(offer)
        self._hashes = offer.group_hashes if federation.config.transfer.hold else {}
        self.sent_bytes: dict[str, int] = {}

    def hashes(self, site: str) -> dict[str, str]:
        """Hash of each group that the site needs; none where sites are not to keep any."""
        groups = self._federation.groups_of(site)
        return {group: self._hashes[group] for group in groups if group in self._hashes}

    def record(self, site: str, message: ProtocolMessage) -> RecordDict:
        """The message with the groups that the site needs and does not hold."""
        held = self._federation.holdings.of(site)
        record = self._model.record(message, self._federation.groups_of(site), held)
        self.sent_bytes[site] = self.sent_bytes.get(site, 0) + array_bytes(record)
        return record

    def must_go_again(self, site: str, reply: RecordDict) -> bool:
        """Whether a reply says that the site lacks what it was thought to hold."""
        self._model.forget()  # all who are online have been asked by now
        return self._federation.holdings.must_send_all(site, reply)
