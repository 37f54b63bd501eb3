"""Statistics of the evaluation: the one door to them.

Estimates have ``value``, ``low`` and ``high``; tests ``statistic``, ``p_value``, ``difference`` and
its interval. A row is one scan; where a patient may have several, ``patients`` says whose it is.
"""

from .agreement import cohen_kappa, icc_2_1, r_wg
from .auc import (
    RocPoint,
    auc_covariance,
    auc_interval,
    delong_test,
    delong_variance,
    placements,
    roc_curve,
    split_scores,
)
from .bootstrap import patient_bootstrap
from .estimates import Comparison, Estimate
from .hanley_mcneil import hanley_mcneil_from_areas, hanley_mcneil_test
from .methods import BlandAltman, bland_altman, concordance
from .paired import holm, paired_comparison, paired_comparisons
from .proportions import OperatingPoint, operating_point, youden_threshold
from .stratified import SiteAreas, site_areas, stratified_areas, stratified_difference
from .wilson import wilson_interval

__all__ = [
    "BlandAltman",
    "Comparison",
    "Estimate",
    "OperatingPoint",
    "RocPoint",
    "SiteAreas",
    "auc_covariance",
    "auc_interval",
    "bland_altman",
    "cohen_kappa",
    "concordance",
    "delong_test",
    "delong_variance",
    "hanley_mcneil_from_areas",
    "hanley_mcneil_test",
    "holm",
    "icc_2_1",
    "operating_point",
    "paired_comparison",
    "paired_comparisons",
    "patient_bootstrap",
    "placements",
    "r_wg",
    "roc_curve",
    "site_areas",
    "split_scores",
    "stratified_areas",
    "stratified_difference",
    "wilson_interval",
    "youden_threshold",
]
