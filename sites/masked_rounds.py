"""Which rounds' updates have left under masks: of those nothing more may leave, ever.

The difference of two sums over different sites is the update of a single one; so is that of a sum
and the updates as they are. The release log is the record: it is on disk before anything leaves.
"""

from iedn.errors import RefusedError
from iedn.protocol.messages import TrainReply

from .release_log import ReleaseLog, verify


class MaskedRounds:
    """Rounds of which a masked update has left.

    Args:
        log: the site's release log.
    """

    def __init__(self, log: ReleaseLog) -> None:
        kind = TrainReply.kind
        replies = [e["message"] for e in verify(log.path) if e.get("kind") == kind]
        self._spent = {(m["run"], m["round"]) for m in replies if m.get("mask_roster") is not None}

    def is_spent(self, run: str, number: int) -> bool:
        """Whether a masked update of this round of the run has left."""
        return (run, number) in self._spent

    def check_unspent(self, run: str, number: int) -> None:
        """Refuse anything more of a round's update once it has left under masks.

        Raises:
            RefusedError: ``mask-spent``.
        """
        if self.is_spent(run, number):
            raise RefusedError("mask-spent", f"a masked update of round {number} has left already")

    def remember(self, reply: TrainReply) -> None:
        """The reply is in the log; it counts if it is a masked one."""
        if reply.mask_roster is not None:
            self._spent.add((reply.run, reply.round))
