"""The groups of one model as records: each is encoded once, however many sites it goes to."""

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from iedn.protocol.messages import ProtocolMessage
from iedn.protocol.records import to_record

from .downlink import Offer


class EncodedModel:
    """A model on its way to sites; their messages share the bytes of its groups.

    A group goes to one site whole, and to another, which holds the model before, as a quantised
    step: both are kept.

    Args:
        offer: the model.
    """

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self._encoded: dict[tuple[str, bool], ArrayRecord | MetricRecord | ConfigRecord] = {}

    def record(
        self, message: ProtocolMessage, groups: tuple[str, ...], held: str | None = None
    ) -> RecordDict:
        """The message with what a site lacks of ``groups`` if it holds the model ``held``."""
        record = to_record(message)
        for group, content in self._offer.to_send(groups, held).items():
            key = (group, isinstance(content, bytes))
            if key not in self._encoded:
                self._encoded[key] = to_record(message, {group: content})[group]
            record[group] = self._encoded[key]
        return record

    def forget(self) -> None:
        """Let the records go, whose size is the model's; a later message makes them again."""
        self._encoded.clear()
