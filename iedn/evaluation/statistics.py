"""Statistics of the evaluation: the one door to them.

Estimates have ``value``, ``low`` and ``high``; tests ``statistic``, ``p_value``, ``difference`` and
its interval. A row is one scan; where a patient may have several, ``patients`` says whose it is.
"""

from .agreement import cohen_kappa, icc_2_1, r_wg
from .auc import (
    auc_covariance,
    auc_interval,
    delong_test,
    delong_variance,
    placements,
    split_scores,
)
from .bootstrap import patient_bootstrap
from .estimates import Comparison, Estimate
from .hanley_mcneil import hanley_mcneil_from_areas, hanley_mcneil_test
from .paired import holm, paired_comparison, paired_comparisons
from .proportions import wilson_interval

__all__ = [
    "Comparison",
    "Estimate",
    "auc_covariance",
    "auc_interval",
    "cohen_kappa",
    "delong_test",
    "delong_variance",
    "hanley_mcneil_from_areas",
    "hanley_mcneil_test",
    "holm",
    "icc_2_1",
    "paired_comparison",
    "paired_comparisons",
    "patient_bootstrap",
    "placements",
    "r_wg",
    "split_scores",
    "wilson_interval",
]
