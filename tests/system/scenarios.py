"""Scenarios that several system tests share."""

from tests.deployment import EVALUATOR, scenario


def trainers_only(*, rounds: int) -> dict[str, object]:
    """The three training sites with the cohorts that they have when the external site is there.

    A site's cohort depends on its place among all sites: hence another seed without the first.
    """
    made = scenario(rounds=rounds)
    sites = made["sites"]
    assert isinstance(sites, dict)
    del sites[EVALUATOR]
    return made | {"cohort_seed": 32}
