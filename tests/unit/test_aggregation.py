"""Hand-computed averages, exactness, order, memory."""

import itertools
import tracemalloc

import numpy as np
import pytest

from iedn import fixed_point
from iedn.fixed_point import BLOCK, MAX_TOTAL_WEIGHT, ExactSum, quantise
from iedn.parameters import flatten, state_hash
from iedn.protocol.checks import shapes_of
from server.aggregation import StreamingSum, Update, aggregate, apply_step
from server.optimizers import ServerOptimizerConfig, advance, server_step

LSB = 2.0**-30


def tensor(*values):
    return np.array(values, dtype=np.float32)


def model(**groups):
    return {g.replace("_", "."): {f"{g}.w": tensor(*v)} for g, v in groups.items()}


def update(weight=1, site_weight=None, **groups):
    deltas = model(**groups)
    return Update(deltas, dict.fromkeys(deltas, weight), site_weight or weight)


def ulp(value):
    return float(np.spacing(np.float32(abs(value))))


def test_two_sites_hand_computed():
    # (10 * 0.5 + 30 * -0.1) / 40 = 0.05
    result = aggregate(
        model(decoder=[1.0]), [update(10, decoder=[0.5]), update(30, decoder=[-0.1])]
    )
    assert result["decoder"]["decoder.w"][0] == pytest.approx(1.05, abs=LSB + ulp(1.05))


def test_rare_encoder_keeps_its_update_where_fedavg_dilutes_it():
    base = model(encoder_ASL=[0.0], decoder=[0.0])
    owner = Update(
        model(encoder_ASL=[1.0], decoder=[1.0]), {"encoder.ASL": 100, "decoder": 100}, 100
    )
    other = Update(model(decoder=[0.0]), {"decoder": 300}, 300)
    ours = aggregate(base, [owner, other])
    plain = aggregate(base, [owner, other], method="fedavg")
    assert ours["encoder.ASL"]["encoder_ASL.w"][0] == pytest.approx(1.0, abs=LSB)
    assert plain["encoder.ASL"]["encoder_ASL.w"][0] == pytest.approx(0.25, abs=LSB)
    assert ours["decoder"]["decoder.w"][0] == plain["decoder"]["decoder.w"][0] == 0.25


def test_agrees_with_plain_fedavg_when_all_own_everything():
    rng = np.random.default_rng(3)
    base = model(encoder_T1WI=rng.normal(size=200), decoder=rng.normal(size=300))
    weights = [5, 40, 115]
    sites = [
        {
            g: {n: rng.normal(0, 0.01, x.shape).astype(np.float32) for n, x in t.items()}
            for g, t in base.items()
        }
        for _ in weights
    ]
    updates = [Update(s, dict.fromkeys(s, w), w) for s, w in zip(sites, weights, strict=True)]
    for method in ("per-group", "fedavg"):
        result = aggregate(base, updates, method=method)
        for group, name in (("encoder.T1WI", "encoder_T1WI.w"), ("decoder", "decoder.w")):
            deltas = [s[group][name].astype(np.float64) for s in sites]
            mean = sum(w * d for w, d in zip(weights, deltas, strict=True)) / sum(weights)
            expected = base[group][name].astype(np.float64) + mean
            allowed = LSB + np.spacing(np.abs(expected).astype(np.float32))
            assert (np.abs(result[group][name] - expected) <= allowed).all()


def test_group_nobody_trained_is_bit_identical():
    base = model(encoder_ASL=[0.1, -3.3e-12], decoder=[1.0])
    result = aggregate(base, [update(5, decoder=[0.25])])
    assert (
        result["encoder.ASL"]["encoder_ASL.w"].tobytes()
        == base["encoder.ASL"]["encoder_ASL.w"].tobytes()
    )


def test_any_order_is_bit_identical():
    rng = np.random.default_rng(0)
    base = model(decoder=rng.normal(size=50))
    updates = [update(w, decoder=rng.normal(0, 10.0**-k, 50)) for k, w in enumerate((3, 7, 11, 2))]
    results = {
        aggregate(base, order)["decoder"]["decoder.w"].tobytes()
        for order in itertools.permutations(updates)
    }
    assert len(results) == 1


def test_any_grouping_is_bit_identical():
    """Integer sums are associative: partial sums of any partition add up to the same total."""
    rng = np.random.default_rng(1)
    deltas = [rng.normal(0, 0.1, 40).astype(np.float32) for _ in range(6)]
    weights = [1, 20, 3, 400, 5, 60]
    terms = [quantise(d) * w for d, w in zip(deltas, weights, strict=True)]
    whole = sum(terms)
    for cut in range(1, 6):
        assert (sum(terms[:cut]) + sum(terms[cut:]) == whole).all()
    total = StreamingSum({"decoder": {"decoder.w": (40,)}})
    for d, w in zip(deltas, weights, strict=True):
        total.add(Update({"decoder": {"decoder.w": d}}, {"decoder": w}, w))
    mean = total.mean_deltas()["decoder"]["decoder.w"]
    assert (mean == whole / 2.0**30 / sum(weights)).all()


def test_64_contributors_need_the_memory_of_one():
    size = 250_000
    base = {"decoder": {"w": np.zeros(size, np.float32)}}

    def peak(contributors):
        delta = np.full(size, 0.5, np.float32)
        updates = (
            Update({"decoder": {"w": delta}}, {"decoder": 5}, 5) for _ in range(contributors)
        )
        tracemalloc.start()
        aggregate(base, updates)
        _, top = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return top

    peak(1)
    one, many = peak(1), peak(64)
    assert many <= 1.05 * one


def test_extreme_sum_does_not_overflow():
    base = {"decoder": {"w": np.zeros(1, np.float32)}}
    total = StreamingSum(shapes_of(base))
    delta = {"decoder": {"w": np.array([2.0**10], np.float32)}}
    half = MAX_TOTAL_WEIGHT // 2
    total.add(Update(delta, {"decoder": half}, half))
    total.add(Update(delta, {"decoder": half}, half))
    assert total.mean_deltas()["decoder"]["w"][0] == 2.0**10
    assert total.would_overflow(Update(delta, {"decoder": 1}, 1))
    with pytest.raises(ValueError, match="total weight"):
        total.add(Update(delta, {"decoder": 1}, 1))


def test_step_size_and_rounding_once():
    base = model(decoder=[1.0])
    result = aggregate(base, [update(4, decoder=[0.5])], eta=0.5)
    assert result["decoder"]["decoder.w"][0] == 1.25
    assert apply_step(base, {})["decoder"]["decoder.w"] is base["decoder"]["decoder.w"]


@pytest.mark.parametrize("bad", [{"decoder": 0}, {"decoder": -5}])
def test_weight_below_one_is_an_error(bad):
    total = StreamingSum({"decoder": {"decoder.w": (1,)}})
    with pytest.raises(ValueError, match="weights"):
        total.add(Update(model(decoder=[1.0]), bad, 1))


def test_unknown_group_is_an_error():
    total = StreamingSum({"decoder": {"decoder.w": (1,)}})
    with pytest.raises(ValueError, match=r"encoder\.ASL"):
        total.add(update(1, encoder_ASL=[1.0]))


# --- blockwise sums -----------------------------------------------------------------------------


def rounded_plainly(delta):
    """The formula: delta * 2^30 in float64, rounded half to even, as integers."""
    return np.rint(delta.astype(np.float64) * 2.0**30).astype(np.int64)


def awkward(size, seed=0):
    """Every scale that the gate lets pass, with ties, signed zeros, subnormals and the bounds."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=size) * 10.0 ** rng.uniform(-12, 2, size)
    values[: size // 4] = (rng.integers(-(2**20), 2**20, size // 4) + 0.5) * LSB  # ties
    special = [0.0, -0.0, 1e-45, -1e-45, 2.0**10, -(2.0**10), LSB / 2, -LSB / 2, 1.5 * LSB]
    values[-len(special) :] = special
    return np.clip(values, -(2.0**10), 2.0**10).astype(np.float32)


@pytest.fixture(params=["blocks", "compiled"])
def way(request, monkeypatch):
    """Both ways of adding a tensor, whatever its size."""
    monkeypatch.setattr(fixed_point, "LARGE", 0 if request.param == "compiled" else 2**62)
    quantise(np.zeros(8, np.float32))  # compiles
    return request.param


def test_large_tensors_are_added_by_the_compiled_loop(monkeypatch):
    added = []
    monkeypatch.setattr(fixed_point, "_compiled", lambda: lambda *given: added.append(given))
    for size in (fixed_point.LARGE - 1, fixed_point.LARGE):
        quantise(np.ones(size, np.float32))
    assert [addend.size for _, addend, *_ in added] == [fixed_point.LARGE]


def test_without_numba_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(fixed_point, "find_spec", lambda _: None)
    assert fixed_point._compiled.__wrapped__() is None


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", [9, 1023, 1025, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_blockwise_quantisation_is_the_formula_bit_for_bit(size):
    delta = awkward(max(size, 40))[-size:]
    assert (quantise(delta) == rounded_plainly(delta)).all()


@pytest.mark.usefixtures("way")
def test_ties_go_to_the_even_neighbour():
    halves = tensor(*(k * LSB / 2 for k in (-3, -1, 1, 3, 5)))
    assert quantise(halves).tolist() == [-2, 0, 0, 2, 2]


@pytest.mark.usefixtures("way")
def test_blockwise_sum_and_mean_are_the_formulas_bit_for_bit():
    deltas = [awkward(2 * BLOCK + 5, seed) for seed in range(4)]
    weights = [1, 17, 4096, 2**19]
    total = ExactSum(deltas[0].shape)
    for delta, weight in zip(deltas, weights, strict=True):
        total.add(delta, weight)
    expected = sum(rounded_plainly(d) * w for d, w in zip(deltas, weights, strict=True))
    assert (total.total() == expected).all()
    divisor = float(sum(weights))
    assert total.mean(divisor).tobytes() == (expected / 2.0**30 / divisor).tobytes()


@pytest.mark.usefixtures("way")
def test_any_shape_and_layout():
    grid = awkward(60).reshape(3, 4, 5)
    assert (quantise(np.asfortranarray(grid)) == rounded_plainly(grid)).all()
    assert quantise(np.float32(0.5).reshape(())).shape == ()
    assert quantise(np.zeros((0, 3), np.float32)).shape == (0, 3)


@pytest.mark.usefixtures("way")
def test_another_shape_is_refused_and_nothing_is_added():
    total = ExactSum((2, BLOCK))
    with pytest.raises(ValueError, match="shape"):
        total.add(np.ones((BLOCK, 2), np.float32), 1)
    assert not total.total().any()


@pytest.mark.usefixtures("way")
def test_adding_makes_nothing_of_the_tensors_size():
    size = 64 * BLOCK
    delta, total = np.ones(size, np.float32), ExactSum((size,))
    tracemalloc.start()
    total.add(delta, 3)
    _, top = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert top < delta.nbytes / 4


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam"])
def test_advance_is_server_step_and_apply_step(name):
    config = ServerOptimizerConfig(name=name, eta=0.7)
    base = {
        "decoder": {"a": awkward(50, 1), "b": awkward(60, 2)},
        "encoder.ASL": {"c": awkward(40, 3)},
    }
    moments: dict = {}
    expected, expected_moments = base, moments
    for seed in range(2):  # the second round uses the moments of the first
        deltas = {"decoder": {"a": awkward(50, seed), "b": awkward(60, seed)}}
        sums = [StreamingSum(shapes_of(base)) for _ in range(2)]
        for total in sums:
            total.add(Update(deltas, {"decoder": 3}))
        step, expected_moments = server_step(sums[0].mean_deltas(), expected_moments, config)
        expected = apply_step(expected, step)
        base, moments = advance(base, sums[1].drain(), moments, config)
        assert sums[1].mean_deltas() == {}, "the sum is used up"
    assert state_hash(flatten(base)) == state_hash(flatten(expected))
    assert state_hash(moments) == state_hash(expected_moments)
    assert base["encoder.ASL"]["c"].tobytes() == awkward(40, 3).tobytes()
