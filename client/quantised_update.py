"""An update in fewer bits: quantised with error feedback before it leaves.

It is applied to what would leave anyway, so that clipping and noise, where there are any, come
first. A group that the policy holds back adds nothing to what is left over: it must not leave
later either.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from iedn.config import TransferConfig
from iedn.protocol.encoding import Encoded, encode
from iedn.protocol.records import Groups

from .kept_reply import Residual, Residuals


def quantised(deltas: Groups, before: Residual, transfer: TransferConfig) -> dict[str, Encoded]:
    """Each group's deltas as they would travel; empty where updates travel in float32.

    Raises:
        RefusedError: ``not-finite`` or ``too-large``.
    """
    if transfer.up == "fp32":
        return {}
    return {
        group: encode(tensors, before, transfer.up, entropy_coding=transfer.entropy_coding)
        for group, tensors in deltas.items()
    }


def residuals_after(
    before: Residual, encoded: Mapping[str, Encoded], sent: Iterable[str]
) -> Residuals:
    """What is left over once these groups are sent; the others keep what they had."""
    after = dict(before)
    for group in sent:
        if group in encoded:
            lost = encoded[group].residual
            after |= {name: value.astype(np.float32) for name, value in lost.items()}
    return Residuals(before, after)
