"""The groups of one model as records: each is encoded once, however many sites it goes to."""

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from iedn.protocol.messages import ProtocolMessage
from iedn.protocol.records import to_record

from .aggregation import Float32Groups


class EncodedModel:
    """A model on its way to sites; their messages share the tensors' bytes.

    Args:
        model: float32 tensors by group.
    """

    def __init__(self, model: Float32Groups) -> None:
        self._model = model
        self._encoded: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {}

    def record(self, message: ProtocolMessage, groups: tuple[str, ...]) -> RecordDict:
        """The message with those of ``groups`` that the model has."""
        record = to_record(message)
        for group in groups:
            if group in self._model:
                record[group] = self._group(message, group)
        return record

    def forget(self) -> None:
        """Let the records go, whose size is the model's; a later message makes them again."""
        self._encoded.clear()

    def _group(
        self, message: ProtocolMessage, group: str
    ) -> ArrayRecord | MetricRecord | ConfigRecord:
        if group not in self._encoded:
            self._encoded[group] = to_record(message, {group: self._model[group]})[group]
        return self._encoded[group]
