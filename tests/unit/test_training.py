"""Training: it learns, it repeats bit for bit, and each switch does what it says."""

import logging
import threading
from collections import Counter
from itertools import islice

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from iedn.batching import draw_batches, flip, keep_modalities, prefetched, scan_shapes
from iedn.config import PRESETS, NetworkConfig, TrainingConfig
from iedn.errors import TrainingError
from iedn.losses import paper_loss
from iedn.modalities import Modality
from iedn.model import Iedn, build_network
from iedn.parameters import flatten, state_by_group, state_hash
from iedn.sample import BRAIN_MEAN, IednSample, collate
from iedn.training import make_step, train, training_batches

TINY = PRESETS["tiny"].network
SMALL = NetworkConfig(base_channels=2, depth=1, modalities=(Modality.T1WI, Modality.ASL))
CPU = torch.device("cpu")


def smooth(generator: Generator, shape: tuple[int, ...]) -> Tensor:
    coarse = torch.randn(1, 1, 4, 6, 6, generator=generator)
    return F.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)[0]


def scan(seed: int, *, shape: tuple[int, int, int] = (8, 32, 32), asl: bool = True) -> IednSample:
    """Blobs inside an ellipsoid; CBV follows ASL, and T1WI weakly."""
    generator = Generator().manual_seed(seed)
    axes = [torch.linspace(-1.1, 1.1, n) for n in shape]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    mask = ((z**2 + (y / 0.85) ** 2 + (x / 0.7) ** 2) < 1).float()[None]

    def scaled(values: Tensor) -> Tensor:
        inside = values.clamp(min=0) * mask
        return inside * BRAIN_MEAN / (inside.sum() / mask.sum())

    tissue, perfusion = smooth(generator, shape), smooth(generator, shape)
    images = {Modality.T1WI: scaled(1 + 0.3 * tissue)}
    if asl:
        images[Modality.ASL] = scaled(1 + 0.5 * perfusion)
    return IednSample(images, mask, scaled(1 + 0.5 * perfusion + 0.2 * tissue))


@pytest.fixture(scope="module")
def scans() -> list[IednSample]:
    return [scan(i, asl=i % 3 > 0) for i in range(16)]


@pytest.fixture(scope="module")
def small_scans() -> list[IednSample]:
    return [scan(i, shape=(3, 12, 12), asl=i % 2 > 0) for i in range(5)]


def fingerprint(model: Iedn) -> str:
    return state_hash(flatten(state_by_group(model)))


def test_forty_steps_lower_the_loss_by_a_quarter(scans):
    losses: list[float] = []
    summary = train(
        build_network(TINY, seed=1),
        scans,
        TrainingConfig(local_steps=40, batch_size=2),
        seed=1,
        progress=lambda _, loss: losses.append(loss),
    )
    first, last = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
    assert last < 0.75 * first
    assert summary.steps == len(losses) == 40
    assert (summary.first_loss, summary.last_loss) == (losses[0], losses[-1])
    assert summary.mean_loss == pytest.approx(sum(losses) / 40)
    assert summary.seconds > 0


def test_golden_loss_curve(scans):
    """Threads and memory layout move these by 1e-7; anything more is a change of the method."""
    losses: list[float] = []
    config = TrainingConfig(local_steps=5, batch_size=2, keep_probability=0.5, threads=1)
    train(
        build_network(TINY, seed=0),
        scans,
        config,
        seed=0,
        progress=lambda _, loss: losses.append(loss),
    )
    golden = [0.603082, 0.3811405, 0.7743855, 0.3018629, 0.2256471]
    assert losses == pytest.approx(golden, rel=1e-4)


def test_the_same_seed_gives_the_same_model_bit_for_bit(small_scans):
    config = TrainingConfig(local_steps=4, flip_probability=0.5)

    def run(seed: int, global_seed: int) -> str:
        torch.manual_seed(global_seed)
        model = build_network(SMALL, seed=3)
        train(model, small_scans, config, seed=seed)
        return fingerprint(model)

    assert run(5, 0) == run(5, 1)
    assert run(5, 0) != run(6, 0)


def test_threads_training_side_by_side_do_not_disturb_each_other(small_scans):
    config = TrainingConfig(local_steps=3)
    found: dict[int, str] = {}

    def run(seed: int) -> None:
        model = build_network(SMALL, seed=seed)
        train(model, small_scans, config, seed=seed)
        found[seed] = fingerprint(model)

    workers = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    together = dict(found)
    for seed in range(2):
        run(seed)
    assert together == found


def test_the_number_of_threads_is_restored(small_scans):
    before = torch.get_num_threads()
    inside: list[int] = []
    config = TrainingConfig(local_steps=1, threads=before + 1)
    model = build_network(SMALL, seed=0)
    train(
        model,
        small_scans,
        config,
        seed=0,
        progress=lambda *_: inside.append(torch.get_num_threads()),
    )
    assert inside == [before + 1]
    assert torch.get_num_threads() == before


def test_encoders_of_dropped_and_absent_modalities_stay_bit_identical():
    model = build_network(SMALL, seed=0)
    before = state_by_group(model)
    without_asl = [scan(i, shape=(3, 12, 12), asl=False) for i in range(2)]
    train(model, without_asl, TrainingConfig(local_steps=3), seed=0)
    after = state_by_group(model)
    assert state_hash(after["encoder.ASL"]) == state_hash(before["encoder.ASL"])
    assert state_hash(after["encoder.T1WI"]) != state_hash(before["encoder.T1WI"])
    assert state_hash(after["decoder"]) != state_hash(before["decoder"])


def test_images_the_network_does_not_know_are_left_out(small_scans):
    narrow = build_network(SMALL.model_copy(update={"modalities": (Modality.T1WI,)}), seed=0)
    assert train(narrow, small_scans, TrainingConfig(local_steps=1), seed=0).steps == 1
    other = build_network(SMALL.model_copy(update={"modalities": (Modality.ADC,)}), seed=0)
    with pytest.raises(ValueError, match="at least one modality"):
        train(other, small_scans, TrainingConfig(local_steps=1), seed=0)


def test_the_baseline_never_loses_a_modality():
    config = SMALL.model_copy(update={"architecture": "encoder-decoder"})
    both = [scan(i, shape=(3, 12, 12)) for i in range(3)]
    settings = TrainingConfig(local_steps=4, keep_probability=0.1)
    assert train(build_network(config, seed=0), both, settings, seed=0).steps == 4


def test_the_sum_of_per_sample_gradients_is_the_batch_gradient():
    """A loop over patients, as differential privacy needs it, gives the gradient of the batch."""
    model = build_network(SMALL, seed=0)
    batch = collate([scan(i, shape=(3, 12, 12), asl=i != 1) for i in range(3)], SMALL.multiple)

    def gradients(rows: slice) -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        images = {m: x[rows] for m, x in batch.images.items()}
        output = model(images, {m: a[rows] for m, a in batch.weights.items()})
        paper_loss(output, batch.cbv[rows], batch.brain_mask[rows]).total.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    whole = gradients(slice(0, 3))
    single = [gradients(slice(i, i + 1)) for i in range(3)]
    assert not any(name.startswith("encoders.ASL") for name in single[1])
    for name, value in whole.items():
        total = sum(g[name] for g in single if name in g) / 3
        torch.testing.assert_close(total, value, rtol=1e-3, atol=1e-6)


def test_proximal_term_adds_mu_times_the_distance_from_the_start(small_scans):
    batch = collate(small_scans[:2], SMALL.multiple)

    def gradients_after_a_step(mu: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model = build_network(SMALL, seed=0)
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        step = make_step(model, TrainingConfig(proximal_mu=mu), CPU)
        step(batch)
        moved = {n: p.detach() - start[n] for n, p in model.named_parameters()}
        moved = {n: d.clone() for n, d in moved.items()}
        step(batch)
        return {n: p.grad.clone() for n, p in model.named_parameters()}, moved

    plain, moved = gradients_after_a_step(0.0)
    pulled, also_moved = gradients_after_a_step(0.5)
    for name, value in plain.items():
        assert torch.equal(moved[name], also_moved[name])
        torch.testing.assert_close(pulled[name] - value, 0.5 * moved[name], rtol=1e-3, atol=1e-6)


def test_proximal_term_keeps_the_model_closer(small_scans):
    def distance(mu: float) -> float:
        model = build_network(SMALL, seed=0)
        start = [p.detach().clone() for p in model.parameters()]
        train(model, small_scans, TrainingConfig(local_steps=8, proximal_mu=mu), seed=0)
        return sum(
            float((p - q).detach().square().sum())
            for p, q in zip(model.parameters(), start, strict=True)
        )

    assert distance(10.0) < 0.8 * distance(0.0)


def test_a_loss_that_is_not_finite_stops_with_a_clear_error(small_scans):
    broken = IednSample(
        small_scans[0].images, small_scans[0].brain_mask, small_scans[0].brain_mask * float("nan")
    )
    model = build_network(SMALL, seed=0)
    with pytest.raises(TrainingError, match=r"step 1 is nan.*intensities"):
        train(model, [broken, broken], TrainingConfig(local_steps=2), seed=0)
    with pytest.raises(ValueError, match="measured CBV"):
        train(model, [IednSample(broken.images, broken.brain_mask)], TrainingConfig(), seed=0)
    with pytest.raises(ValueError, match="at least one scan"):
        train(model, [], TrainingConfig(), seed=0)


def test_batch_of_one_works_and_says_that_it_is_slow(small_scans, caplog):
    with caplog.at_level(logging.WARNING):
        train(
            build_network(SMALL, seed=0),
            small_scans,
            TrainingConfig(local_steps=2, batch_size=1),
            seed=0,
        )
    assert sum("slow on a CPU" in r.message for r in caplog.records) == 1


def test_the_next_batch_is_made_while_one_is_used_and_none_too_many():
    made: list[int] = []
    using = threading.Event()

    def making():
        for number in range(3):
            if number == 1:
                assert using.wait(timeout=10), "the next one was not asked for meanwhile"
            made.append(number)
            yield number

    taken = []
    for number in prefetched(making()):
        using.set()
        taken.append(number)
    assert taken == made == [0, 1, 2]


def test_an_error_in_making_a_batch_is_raised_where_it_would_have_come():
    def making():
        yield 1
        raise ValueError("broken scan")

    batches = prefetched(making())
    assert next(batches) == 1
    with pytest.raises(ValueError, match="broken scan"):
        next(batches)


def test_a_run_draws_as_many_batches_as_it_has_steps(small_scans):
    class Counting(list):
        reads = 0

        def __getitem__(self, index):
            Counting.reads += 1
            return super().__getitem__(index)

        shapes = property(lambda self: [tuple(s.brain_mask.shape) for s in self])

    train(
        build_network(SMALL, seed=0), Counting(small_scans), TrainingConfig(local_steps=2), seed=0
    )
    assert Counting.reads == 2 * TrainingConfig().batch_size


# --- drawing batches --------------------------------------------------------------------------


def test_an_epoch_sees_every_scan_in_batches_of_one_shape():
    shapes = [(1, 8, 8, 8)] * 5 + [(1, 9, 8, 8)] * 4 + [(1, 3, 8, 8)]
    batches = list(islice(draw_batches(shapes, 2, Generator().manual_seed(0)), 6))
    assert all(len({shapes[i] for i in batch}) == 1 and len(batch) == 2 for batch in batches)
    seen = Counter(i for batch in batches for i in batch)
    assert set(seen) == set(range(10))
    assert seen[9] == 2  # alone of its shape: fills its batch by itself
    assert sum(seen[i] for i in range(5)) == 6  # five scans in three batches: one repeats
    assert all(seen[i] == 1 for i in range(5, 9))


def test_order_changes_from_epoch_to_epoch_and_follows_the_seed():
    def epochs(seed: int) -> list[list[int]]:
        return list(islice(draw_batches([(1, 8, 8, 8)] * 8, 2, Generator().manual_seed(seed)), 8))

    assert epochs(0) == epochs(0)
    assert epochs(0) != epochs(1)
    assert epochs(0)[:4] != epochs(0)[4:]


def test_shapes_can_be_told_without_reading_scans():
    class Told:
        shapes = ((1, 8, 8, 8), [1, 9, 8, 8])

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> IednSample:
            raise AssertionError("read")

    assert scan_shapes(Told()) == [(1, 8, 8, 8), (1, 9, 8, 8)]
    assert scan_shapes([scan(0, shape=(3, 12, 12))]) == [(1, 3, 12, 12)]


def test_scans_of_unequal_shape_train_together():
    mixed = [scan(i, shape=(3 + i % 2, 12, 12)) for i in range(4)]
    assert (
        train(build_network(SMALL, seed=0), mixed, TrainingConfig(local_steps=4), seed=0).steps == 4
    )


def test_every_scan_keeps_a_modality_and_kept_ones_follow_the_probability():
    # the first scan has T1WI only, the second both
    batch = collate([scan(0, shape=(3, 12, 12), asl=False), scan(1, shape=(3, 12, 12))], 2)
    generator = Generator().manual_seed(0)
    kept = Counter()
    for _ in range(2000):
        smaller = keep_modalities(batch, 0.3, generator)
        assert set(smaller.images) == set(smaller.weights)
        assert Modality.T1WI in smaller.images
        kept.update(list(smaller.images))
    # T1WI is always given back to the first scan; ASL stays with probability 0.3
    assert kept[Modality.ASL] / 2000 == pytest.approx(0.3, abs=0.04)


def test_a_lost_modality_is_given_back_uniformly():
    batch = collate([scan(1, shape=(3, 12, 12))], 2)
    generator = Generator().manual_seed(0)
    alone = Counter()
    for _ in range(2000):
        images = keep_modalities(batch, 0.2, generator).images
        alone["+".join(images)] += 1
    assert alone["T1WI+ASL"] / 2000 == pytest.approx(0.04, abs=0.02)
    assert alone["T1WI"] / 2000 == pytest.approx(0.48, abs=0.04)
    assert set(keep_modalities(batch, 1.0, generator).images) == set(batch.images)


def test_flips_mirror_images_mask_and_target_together(small_scans):
    mirrored = flip(small_scans[1])
    for one, other in (
        (mirrored.brain_mask, small_scans[1].brain_mask),
        (mirrored.cbv, small_scans[1].cbv),
        *((mirrored.images[m], x) for m, x in small_scans[1].images.items()),
    ):
        assert torch.equal(one, other[..., range(11, -1, -1)])


def test_flips_happen_as_often_as_asked():
    lopsided = scan(0, shape=(3, 12, 12))
    lopsided.brain_mask[..., 6:] = 0
    model = build_network(SMALL, seed=0)

    def share(probability: float) -> float:
        config = TrainingConfig(flip_probability=probability, batch_size=1)
        batches = islice(training_batches(model, [lopsided], config, seed=0), 200)
        plain = collate([lopsided], SMALL.multiple).brain_mask
        return sum(not torch.equal(b.brain_mask, plain) for b in batches) / 200

    assert share(0.0) == 0.0
    assert share(1.0) == 1.0
    assert share(0.5) == pytest.approx(0.5, abs=0.12)
