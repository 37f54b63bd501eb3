"""Server optimisers against numbers worked out by hand."""

import numpy as np
import pytest

from server.optimizers import ServerOptimizerConfig, server_step


def means(value, group="decoder"):
    return {group: {"w": np.array([value])}}


def test_fedavg_keeps_no_state():
    step, moments = server_step(means(0.5), {}, ServerOptimizerConfig(eta=0.5))
    assert step["decoder"]["w"][0] == 0.25
    assert moments == {}


def test_fedavgm_two_rounds():
    config = ServerOptimizerConfig(name="fedavgm", momentum=0.9)
    step, moments = server_step(means(1.0), {}, config)
    assert step["decoder"]["w"][0] == 1.0
    step, moments = server_step(means(0.5), moments, config)
    assert step["decoder"]["w"][0] == pytest.approx(0.9 * 1.0 + 0.5)


def test_fedadam_first_round():
    config = ServerOptimizerConfig(
        name="fedadam", eta=0.1, momentum=0.9, second_momentum=0.99, tau=0.001
    )
    step, _ = server_step(means(0.2), {}, config)
    m = 0.1 * 0.2
    v = 0.99 * 0.001**2 + 0.01 * 0.2**2
    assert step["decoder"]["w"][0] == pytest.approx(0.1 * m / (v**0.5 + 0.001))


@pytest.mark.parametrize("name", ["fedavgm", "fedadam"])
def test_group_without_contributors_keeps_its_moments(name):
    config = ServerOptimizerConfig(name=name)
    _, before = server_step(means(1.0, "encoder.ASL"), {}, config)
    kept = {k: v.copy() for k, v in before.items()}
    step, after = server_step(means(1.0, "decoder"), before, config)
    assert "encoder.ASL" not in step
    for key, value in kept.items():
        assert after[key].tobytes() == value.tobytes()
    assert set(before) == set(kept), "the state before a round must not be changed"
