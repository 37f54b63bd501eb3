"""External cohorts together: areas under ROC curves from seven numbers a site, stratified by site.

Scores of different scanners are not comparable, so that patients are only compared within a site.
The result is that of the joined scores with sites as strata, and nothing but the numbers came.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from iedn.errors import RefusedError, StatisticsError
from iedn.evaluation.statistics import SiteAreas, stratified_areas, stratified_difference
from iedn.protocol.messages import ComparisonName, PairedAreas

Facts = dict[str, Any]


def checked_areas(
    paired: Mapping[ComparisonName, PairedAreas],
) -> dict[ComparisonName, SiteAreas]:
    """A site's numbers by comparison.

    Raises:
        RefusedError: variances and covariance that no scores can have.
    """
    try:
        return {name: SiteAreas(**areas.model_dump()) for name, areas in paired.items()}
    except StatisticsError as error:
        raise RefusedError("wrong-areas", str(error)) from error


def stratified(sites: Mapping[str, Mapping[ComparisonName, SiteAreas]]) -> dict[str, Facts]:
    """Every comparison over all sites that sent it, e.g. ``{"roi": {"difference": 0.11, …}}``.

    A site alone gives its own areas. ``difference`` is the synthetic map's area - that of ASL.
    """
    names = sorted({name for found in sites.values() for name in found})
    return {
        name: _of_sites({site: found[name] for site, found in sites.items() if name in found})
        for name in names
    }


def _of_sites(sites: Mapping[str, SiteAreas]) -> Facts:
    together = [areas for _, areas in sorted(sites.items())]
    synthetic, asl = stratified_areas(together)
    facts: Facts = {
        "sites": sorted(sites),
        "num_recurrence": sum(areas.num_positive for areas in together),
        "num_treatment_response": sum(areas.num_negative for areas in together),
        "synthetic_cbv": asdict(synthetic),
        "asl": asdict(asl),
    }
    try:
        return {**facts, **asdict(stratified_difference(together))}
    except StatisticsError as error:
        return {**facts, "note": str(error)}
