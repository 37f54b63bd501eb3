"""Epsilon against dp-accounting and closed forms; and where the sharper bound does not come."""

import math
import threading

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from client import timed_accounting
from client.accounting import PrivacyEvent, epsilon_of, renyi_epsilon_of
from client.ledger import PrivacyLedger
from client.timed_accounting import epsilon_in_time

DELTA = 1e-3
Q = 16 / 129

# PLDAccountant of dp-accounting 0.6.0 (default discretisation), GaussianDpEvent, Poisson sampled
# where q < 1, delta 1e-3. It needs attrs < 24 and cannot be installed beside the rest.
ORACLE = [
    ([(1.0, Q, 200)], 9.1689),
    ([(2.0, Q, 400)], 4.5330),
    ([(1.0, Q, 100), (2.0, Q, 400)], 8.1776),
    ([(1.5, 8 / 129, 400), (2.0, Q, 200), (4.0, 32 / 129, 200)], 5.6902),
    ([(4.0, 1.0, 100)], 10.2048),
]


def events(rows):
    return [PrivacyEvent(*row) for row in rows]


@pytest.mark.parametrize(("rows", "expected"), ORACLE)
def test_ledger_agrees_with_dp_accounting(tmp_path, rows, expected):
    """Several entries of one kind cost what one entry of all their steps costs."""
    ledger = PrivacyLedger.open(tmp_path, epsilon_max=50.0, delta=DELTA, accountant=epsilon_of)
    for number, (noise, rate, steps) in enumerate(rows, start=1):
        event = PrivacyEvent(noise, rate, steps)
        reserved = ledger.reserve(event, run="run-1", round_number=number, base_hash="b" * 64)
    assert reserved.epsilon == ledger.epsilon()
    assert expected - 1e-4 <= ledger.epsilon() <= expected + 0.05


def test_many_small_entries_cost_what_one_large_one_costs():
    assert epsilon_of(events([(2.0, Q, 10)] * 40), DELTA) == epsilon_of(
        events([(2.0, Q, 400)]), DELTA
    )


def test_without_sampling_it_is_the_gaussian_mechanism():
    """T steps of noise sigma are one of mu = sqrt(T) / sigma (Dong, Roth and Su, 2022):
    delta(eps) = Phi(-eps / mu + mu / 2) - exp(eps) Phi(-eps / mu - mu / 2)."""
    sigma, steps = 4.0, 25
    mu = math.sqrt(steps) / sigma

    def excess(epsilon):
        first = norm.cdf(-epsilon / mu + mu / 2)
        return first - math.exp(epsilon) * norm.cdf(-epsilon / mu - mu / 2) - DELTA

    exact = brentq(excess, 0.0, 30.0)
    assert exact <= epsilon_of(events([(sigma, 1.0, steps)]), DELTA) <= exact + 0.05


def test_slow_accountant_is_not_waited_for(monkeypatch):
    came = threading.Event()

    def slowly(events, delta):
        came.wait(10.0)
        return 1.0

    monkeypatch.setattr(timed_accounting, "epsilon_of", slowly)
    rows = events([(2.0, Q, 400)])
    try:
        assert epsilon_in_time(rows, DELTA, patience_s=0.01) == renyi_epsilon_of(rows, DELTA)
    finally:
        came.set()


def test_accountant_that_fails_is_replaced_by_the_larger_bound(monkeypatch):
    def fail(events, delta):
        raise MemoryError("grid")

    monkeypatch.setattr(timed_accounting, "epsilon_of", fail)
    rows = events([(2.0, Q, 400)])
    # RdpAccountant of dp-accounting 0.6.0 gives 5.1309 with its own orders.
    assert epsilon_in_time(rows, DELTA) == pytest.approx(5.1309, abs=0.05)


def test_accountant_that_is_in_time_gives_the_smaller_bound(monkeypatch):
    monkeypatch.setattr(timed_accounting, "epsilon_of", lambda events, delta: 4.5)
    assert epsilon_in_time(events([(2.0, Q, 400)]), DELTA) == 4.5
