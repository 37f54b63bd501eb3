"""An update in fewer bits: quantised with error feedback before it leaves.

Clipping and noise, where there are any, come first: what is quantised, and what that leaves over,
is a function of changes that were noised and paid for. A group that the policy holds back adds
nothing to what is left over: it must not leave later either.
"""

from pathlib import Path

import numpy as np

from iedn.protocol.encoding import Encoded, encode
from iedn.protocol.messages import TrainRequest
from iedn.protocol.records import Groups
from sites.changes import Changes

from .kept_reply import Residual, Residuals, residual_before


class Quantiser:
    """Quantises the changes of one round; without any effect where updates travel in float32.

    Args:
        folder: the site's, with what earlier rounds have left over.
        request: says how updates travel.
        is_noised: whether the changes hold noise.
    """

    def __init__(self, folder: Path, request: TrainRequest, *, is_noised: bool) -> None:
        self._transfer = request.transfer
        self._before: Residual = {}
        if request.transfer.up != "fp32":
            self._before = residual_before(folder, request, is_noised=is_noised)

    def changes(self, deltas: Groups) -> Changes:
        """Each group's change as it will travel.

        Raises:
            RefusedError: ``not-finite`` or ``too-large``.
        """
        up, entropy = self._transfer.up, self._transfer.entropy_coding
        if up == "fp32":
            return deltas
        return {
            group: encode(tensors, self._before, up, entropy_coding=entropy)
            for group, tensors in deltas.items()
        }

    def residuals(self, sent: Changes) -> Residuals:
        """What is left over once these groups are sent; the others keep what they had."""
        after = dict(self._before)
        for change in sent.values():
            if isinstance(change, Encoded):
                lost = change.residual
                after |= {name: value.astype(np.float32) for name, value in lost.items()}
        return Residuals(self._before, after)
