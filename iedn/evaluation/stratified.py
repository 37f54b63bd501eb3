"""Areas under ROC curves over several sites, from seven numbers a site.

Scores of different scanners are not comparable, so that one ROC curve over all sites mixes what a
map is worth with how scanners differ. Here only patients of one site are compared with each other:
the area of a site counts with its number of pairs (positive, negative). Sites are independent, so
counts, areas and their covariance are enough: the result is that of the joined rows with strata.
The seven numbers are aggregates, but not formally private: ask for a minimum of patients a class.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import ArrayLike

from iedn.errors import StatisticsError

from .auc import auc_covariance, difference_of_areas, interval_of_area
from .estimates import Comparison, Estimate, Floats, Patients

ROUNDING = 1e-9


@dataclass(frozen=True)
class SiteAreas:
    """What one site tells about two scores: seven numbers.

    Attributes:
        num_positive: rows.
        num_negative: rows.
        area_a: under the ROC curve of score a.
        area_b: of score b.
        variance_a: of ``area_a``.
        variance_b: of ``area_b``.
        covariance: of the two areas.

    Raises:
        StatisticsError: a number is not finite or out of its range.
    """

    num_positive: int
    num_negative: int
    area_a: float
    area_b: float
    variance_a: float
    variance_b: float
    covariance: float

    def __post_init__(self) -> None:
        largest = math.sqrt(max(self.variance_a * self.variance_b, 0.0)) * (1 + ROUNDING)
        if not (
            all(math.isfinite(number) for number in astuple(self))
            and min(self.num_positive, self.num_negative) >= 1
            and min(self.area_a, self.area_b) >= 0
            and max(self.area_a, self.area_b) <= 1
            and min(self.variance_a, self.variance_b) >= 0
            and abs(self.covariance) <= largest
        ):
            raise StatisticsError(
                f"seven numbers {astuple(self)}; allowed are counts from 1, areas from 0 to 1, and "
                "variances and a covariance that belong together"
            )


def site_areas(
    labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike, *, patients: Patients | None = None
) -> SiteAreas:
    """The seven numbers of one site's rows; arguments and errors as of ``delong_test``."""
    areas, covariance = auc_covariance(labels, [scores_a, scores_b], patients=patients)
    num_positive = int(np.sum(np.asarray(labels) == 1))
    return SiteAreas(
        num_positive=num_positive,
        num_negative=np.asarray(labels).size - num_positive,
        area_a=float(areas[0]),
        area_b=float(areas[1]),
        variance_a=float(covariance[0, 0]),
        variance_b=float(covariance[1, 1]),
        covariance=float(covariance[0, 1]),
    )


def stratified_difference(sites: Sequence[SiteAreas], *, level: float = 0.95) -> Comparison:
    """Test of area a against area b over all sites; difference = a - b.

    Raises:
        StatisticsError: no site, or a difference without variance.
    """
    areas, covariance = _combined(sites)
    return difference_of_areas(areas, covariance, "delong-stratified", level=level)


def stratified_areas(
    sites: Sequence[SiteAreas], *, level: float = 0.95
) -> tuple[Estimate, Estimate]:
    """Both areas over all sites, with intervals as of ``auc_interval``.

    Raises:
        StatisticsError: no site.
    """
    areas, covariance = _combined(sites)
    smaller = min(sum(s.num_positive for s in sites), sum(s.num_negative for s in sites))
    first, second = (
        interval_of_area(float(areas[i]), float(covariance[i, i]), smaller, level=level)
        for i in (0, 1)
    )
    return first, second


def _combined(sites: Sequence[SiteAreas]) -> tuple[Floats, Floats]:
    """Areas (2,) weighted by pairs, and their covariance (2, 2)."""
    if not sites:
        raise StatisticsError("no site sent areas; at least one is needed")
    pairs = np.array([site.num_positive * site.num_negative for site in sites], np.float64)
    weights = pairs / pairs.sum()
    areas = np.array([[site.area_a, site.area_b] for site in sites])
    covariances = np.array(
        [[[s.variance_a, s.covariance], [s.covariance, s.variance_b]] for s in sites]
    )
    return weights @ areas, np.einsum("s,sij->ij", weights**2, covariances)
