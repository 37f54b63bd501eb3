"""Damaged files and manifests give a code or a sample, and nothing else: no crash, no warning.

The mutations are those of ``benchmarks/mutations.py``; the suite takes the first 300.
"""

import pytest

from sites.codes import CODES


@pytest.mark.parametrize("block", range(3))
def test_a_mutation_gives_a_code_or_a_sample(mutations, tmp_path, block):
    mutator = mutations.Mutator(tmp_path)
    outcomes = {n: mutator.outcome(n) for n in range(100 * block, 100 * (block + 1))}
    assert set(outcomes.values()) <= {*CODES, "sample", "manifest", "CohortError"}
    # Neither is everything refused nor everything let through.
    assert len(set(outcomes.values())) >= 6


def test_a_mutation_is_the_same_every_time(mutations, tmp_path):
    first, second = (mutations.Mutator(tmp_path) for _ in range(2))
    assert [first.outcome(n) for n in range(12)] == [second.outcome(n) for n in range(12)]
