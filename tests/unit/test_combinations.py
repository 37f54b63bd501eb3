"""The paper's combinations, scored scan by scan, and the table made of the scores."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from client.combination_page import markdown_table
from client.combinations import Unit, UnitFolder, score_combination, scored_scans
from iedn import progress, training
from iedn.config import GridConfig, NetworkConfig, Preset, TrainingConfig
from iedn.errors import ConfigError
from iedn.evaluation.combination_table import (
    ScanScore,
    difference,
    network_differences,
    pairs,
    spread,
    table_rows,
)
from iedn.evaluation.combinations import (
    BEST_WITHOUT_CONTRAST,
    STRUCTURAL,
    WITH_CONTRAST,
    combinations_of,
    name_of,
    paper_combinations,
)
from iedn.evaluation.lesion import white_matter_of_t1
from iedn.evaluation.metrics import evaluate_scan
from iedn.inference import synthesize
from iedn.modalities import Modality
from iedn.model import build_network
from iedn.sample import IednSample
from simulation import table2
from simulation.table2 import HeldOut, Work, run_models
from simulation.table2_page import pattern
from sites.cohort import ScanRecord
from sites.dataset import as_sample
from sites.preprocessing import Frame, Geometry, PreparedScan

T1, T2, ASL = Modality.T1WI, Modality.T2WI, Modality.ASL
SHAPE = (4, 16, 16)


class Held:
    """A dataset in memory: what ``score_combination`` asks of one."""

    def __init__(self, scans):
        self.records = [record for record, _ in scans]
        self._scans = [scan for _, scan in scans]

    def __len__(self):
        return len(self._scans)

    def prepared(self, index):
        return self._scans[index]


def scan(seed, modalities=(T1, ASL), *, lesion=True, cbv=True):
    rng = np.random.default_rng(seed)
    mask = np.zeros(SHAPE, np.float32)
    mask[:, 2:14, 2:14] = 1.0
    images = {m: (mask * rng.random(SHAPE)).astype(np.float32) for m in modalities}
    region = np.zeros(SHAPE, np.float32)
    region[1:3, 5:9, 3:6] = 1.0
    frame = Frame(SHAPE, np.diag([5.0, 5.0, 5.0, 1.0]))
    return PreparedScan(
        images=images,
        brain_mask=mask,
        geometry=Geometry(frame, frame, frame.affine),
        cbv=(mask * rng.random(SHAPE)).astype(np.float32) if cbv else None,
        regions={"lesion_mask": region} if lesion else {},
    )


def record(number, images=(T1, ASL), *, cbv=True):
    there = dict.fromkeys(images, "file.nii.gz")
    return ScanRecord(f"sub-{number:04d}", "ses-01", there, cbv="cbv.nii.gz" if cbv else None)


def score(patient, ssim, psnr=20.0, error=None, scan_id="ses-01"):
    return ScanScore(patient, scan_id, ssim, psnr, error)


def test_the_papers_combinations_are_17_all_with_asl_and_one_with_contrast():
    found = paper_combinations()
    assert len(found) == len(set(found)) == 17
    assert all(ASL in combination for combination in found)
    assert [name_of(c) for c in found if Modality.T1_C in c] == ["T1WI+T2WI+ADC+T1_C+ASL"]
    assert name_of(found[0]) == "ASL"
    assert combinations_of("paper") == found
    assert len(combinations_of("all")) == 63
    assert combinations_of("ASL+T1WI,ASL,T1WI+ASL") == ((T1, ASL), (ASL,))


def test_a_name_that_is_no_modality_says_what_is_allowed():
    with pytest.raises(ConfigError, match=r"'ASL,CBV'.*T1WI, T2WI, FLAIR, ADC, T1_C, ASL"):
        combinations_of("ASL,CBV")


def test_only_scans_with_every_image_are_compared():
    held = Held(
        [
            (record(1), scan(1)),
            (record(2, (T1,)), scan(2, (T1,))),
            (record(3, cbv=False), scan(3, cbv=False)),
            (record(4), scan(4)),
        ]
    )
    assert scored_scans(held, [(T1,), (T1, ASL)]) == [0, 3]
    assert scored_scans(held, [(T1,)]) == [0, 1, 3]
    assert scored_scans(held, [(T2,)]) == []


def test_a_score_is_of_the_inputs_asked_for_and_no_other():
    model = build_network(NetworkConfig(base_channels=4, depth=2), seed=1)
    prepared = scan(5)
    held = Held([(record(1), prepared)])
    (found,) = score_combination(model, held, [0], (T1,))
    mask = torch.from_numpy(prepared.brain_mask)[None]
    alone = IednSample({T1: torch.from_numpy(prepared.images[T1])[None]}, mask)
    cbv = synthesize(model, alone).cbv[0].numpy()
    expected = evaluate_scan(prepared.cbv, cbv, prepared.brain_mask)
    assert (found.ssim_percent, found.psnr_db) == (expected.ssim_percent, expected.psnr_db)
    (other,) = score_combination(model, held, [0], (T1, ASL))
    assert other.psnr_db != found.psnr_db
    white = white_matter_of_t1(prepared.images[T1], prepared.brain_mask)
    white[..., :9] = False  # the midline is 7.5, the lesion left of it, and a voxel is left out
    ratios = [m[1:3, 5:9, 3:6].mean() / m[white].mean() for m in (cbv, prepared.cbv)]
    assert found.lesion_error == pytest.approx(abs(ratios[0] - ratios[1]), rel=1e-5)


def test_a_scan_without_lesion_has_no_lesion_error():
    model = build_network(NetworkConfig(base_channels=4, depth=2), seed=1)
    (found,) = score_combination(model, Held([(record(1), scan(5, lesion=False))]), [0], (T1,))
    assert found.lesion_error is None
    with pytest.raises(ValueError, match="lacks"):
        score_combination(model, Held([(record(1), scan(5))]), [0], (T2,))


def test_units_come_back_and_a_unit_of_other_settings_does_not(tmp_path):
    folder, scores = UnitFolder(tmp_path / "units"), [score("sub-0001", 80.25, error=0.5)]
    unit = Unit("iedn", (T1, ASL), "a" * 64)
    assert folder.load(unit) is None
    folder.store(unit, scores, 1.26)
    assert folder.load(unit) == scores
    assert folder.load(Unit("iedn", (T1, ASL), "b" * 64)) is None
    assert folder.load(Unit("encoder-decoder", (T1, ASL), "a" * 64)) is None
    (path,) = (tmp_path / "units").iterdir()
    assert path.name == "iedn--T1WI+ASL.json"
    assert json.loads(path.read_text())["seconds"] == 1.3


def test_spread_by_hand():
    found = spread(
        [score(f"sub-{n // 2}", v) for n, v in enumerate((1.0, 2, 3, 6))], "ssim_percent"
    )
    assert (found.mean, found.median, found.num_scans, found.num_patients) == (3.0, 2.5, 4, 2)
    assert found.sd == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3))
    assert (found.low_quartile, found.high_quartile) == (1.75, 3.75)
    infinite = [score("sub-1", 1.0, math.inf), score("sub-2", 1.0, 30.0)]
    assert spread(infinite, "psnr_db").num_scans == 1
    assert spread(infinite, "lesion_error") is None


def test_pairs_are_by_scan_whatever_the_order():
    first = [score("sub-1", 1.0), score("sub-2", 2.0)]
    patients, ours, theirs = pairs(
        first, [score("sub-2", 20.0), score("sub-1", 10.0)], "ssim_percent"
    )
    assert (patients, ours, theirs) == (["sub-1", "sub-2"], [1.0, 2.0], [10.0, 20.0])
    with pytest.raises(ValueError, match="same scans"):
        pairs(first, [score("sub-1", 1.0)], "ssim_percent")


def noisy(offset, seed, scans=24):
    rng = np.random.default_rng(seed)
    return [
        score(f"sub-{n // 2:02d}", 80 + offset + rng.normal(), scan_id=f"ses-{n % 2}")
        for n in range(scans)
    ]


def test_differences_are_first_minus_second_and_corrected_together():
    scores = {}
    for number, (combination, offset) in enumerate((((ASL,), 0.0), ((T1, ASL), 3.0))):
        scores["iedn", combination] = noisy(offset, number)
        scores["encoder-decoder", combination] = noisy(0.0, 10 + number)
    none, clear = network_differences(scores, "ssim_percent")
    means = {key: np.mean([s.ssim_percent for s in found]) for key, found in scores.items()}
    expected = means["iedn", (T1, ASL)] - means["encoder-decoder", (T1, ASL)]
    assert clear.value == pytest.approx(expected)
    assert clear.low < clear.value < clear.high
    assert clear.low > 0
    assert clear.p_holm == pytest.approx(2 * clear.p_value)  # the smaller of two, Holm doubles it
    assert none.p_holm == pytest.approx(max(none.p_value, 2 * clear.p_value))
    assert none.p_value > 0.05 > clear.p_holm
    assert network_differences(scores, "lesion_error") == []


def test_one_scan_has_a_difference_and_no_interval():
    found = difference([score("s", 3.0)], [score("s", 1.0)], "ssim_percent", ((T1,), (T1,)))
    assert (found.value, found.low, found.p_value) == (2.0, None, None)
    assert found.note


def test_the_page_has_a_line_a_combination_and_a_table_a_metric():
    scores = {(a, (ASL,)): noisy(0.0, 1) for a in ("iedn", "encoder-decoder")}
    scores["iedn", (T1,)] = noisy(1.0, 2)
    page = markdown_table(scores)
    assert page.count("### ") == 2  # no lesion was drawn
    line = next(x for x in page.splitlines() if x.startswith("| T1WI |"))
    mean = np.mean([s.ssim_percent for s in scores["iedn", (T1,)]])
    assert f"{mean:.2f} ±" in line
    assert line.endswith("| - | - | - | - | - | 24 (12) |")
    assert [row.architecture for row in table_rows(scores)] == ["iedn", "encoder-decoder", "iedn"]
    assert "sub-" not in page


@pytest.fixture
def work(tmp_path):
    """Four training scans, one of them without ASL, and two held-out ones; two steps a model."""
    samples = [as_sample(scan(n)) for n in range(3)] + [as_sample(scan(3, (T1,)))]
    held = Held([(record(n), scan(n)) for n in (10, 11)])
    return Work(
        preset=Preset(
            grid=GridConfig(rows=16, columns=16, spacing_mm=10.0),
            network=NetworkConfig(modalities=(T1, ASL), base_channels=4, depth=2),
        ),
        training=TrainingConfig(local_steps=2, loss="reference"),
        seed=1,
        train=tuple(samples),
        held_out=(HeldOut("site-a", held, (0, 1)),),
        identity="a" * 64,
        test_identity="b" * 64,
        folder=tmp_path,
    )


WANTED = ((ASL,), (T1, ASL))


@pytest.fixture
def trained(monkeypatch):
    """Names the number of scans and steps of every training."""
    calls = []

    def spy(network, scans, config, **options):
        calls.append((network.config.architecture, len(scans), config.local_steps))
        return training.train(network, scans, config, **options)

    monkeypatch.setattr(table2, "train", spy)
    monkeypatch.setattr(table2, "reference_rows", lambda _: ((T1,),))
    return calls


def test_every_model_makes_the_same_steps_and_only_the_iedn_learns_from_all_scans(work, trained):
    scores = run_models(work, WANTED, workers=1)
    assert trained == [("iedn", 4, 2), ("encoder-decoder", 3, 2), ("encoder-decoder", 3, 2)]
    assert list(scores) == [
        *(("iedn", c) for c in (*WANTED, (T1,))),
        *(("encoder-decoder", c) for c in WANTED),
    ]
    assert [s.patient_id for s in scores["iedn", (ASL,)]] == ["site-a/sub-0010", "site-a/sub-0011"]


def test_a_stopped_table_goes_on_with_what_is_missing(work, trained, monkeypatch):
    whole = run_models(work, WANTED, workers=2)
    trained.clear()
    assert run_models(work, WANTED, workers=1) == whole
    assert trained == []
    # A model without its scores is tested again, a damaged one is trained again.
    (work.folder / "units" / "iedn--ASL.json").unlink()
    (work.folder / "units" / "encoder-decoder--ASL.json").unlink()
    (work.folder / "models" / "encoder-decoder--ASL.safetensors").write_bytes(b"half a file")
    assert run_models(work, WANTED, workers=1) == whole
    assert trained == [("encoder-decoder", 3, 2)]
    trained.clear()
    # Other held-out scans are tested with the models there are; other settings train new ones.
    held = Held([(record(12), scan(12)), (record(13), scan(13))])
    moved = replace(work, test_identity="c" * 64, held_out=(HeldOut("site-a", held, (0, 1)),))
    scores = run_models(moved, WANTED, workers=1)
    assert {s.patient_id for s in scores["iedn", (ASL,)]} == {"site-a/sub-0012", "site-a/sub-0013"}
    assert trained == []
    run_models(replace(work, identity="d" * 64), WANTED, workers=1)
    assert len(trained) == 3


def test_progress_counts_steps_and_tested_scans_to_the_end(work, trained):
    seen = []
    end = progress.add_sink(lambda task, done, total: seen.append((done, total)))
    try:
        run_models(work, WANTED, workers=1)
    finally:
        end()
    # Three models of 2 steps; the IEDN tests 3 combinations, the others 1, on 2 scans each.
    assert seen[-1] == (3 * 2 + 5 * 2, 16)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_pattern_counts_and_names_what_the_scores_show():
    scores = {}
    for combination, ours, theirs in (((ASL,), 0.0, -9.0), ((T1, ASL), 5.0, 6.0)):
        scores["iedn", combination] = noisy(ours, 1)
        scores["encoder-decoder", combination] = noisy(theirs, 1)
    scores["iedn", STRUCTURAL] = noisy(-20.0, 1)  # a reference row, which is not compared
    lines = pattern(scores)
    assert "1 of 2 by SSIM" in lines[0]
    assert lines[-1] == (
        "Worst by SSIM: IEDN ASL (as in the paper), 3D encoder-decoder ASL (as in the paper)."
    )
    scores["iedn", (T1, ASL)] = noisy(-1.0, 1)
    assert "Worst by SSIM: IEDN T1WI+ASL (in the paper ASL alone), 3D" in pattern(scores)[-1]
    with_contrast = {("iedn", WITH_CONTRAST): noisy(3.0, 1)}
    with_contrast["iedn", BEST_WITHOUT_CONTRAST] = noisy(1.0, 1)
    (line,) = (x for x in pattern(with_contrast) if "SSIM (points) by" in x)
    assert "T1_C added to T1WI+T2WI+ADC+ASL changes SSIM (points) by +2" in line
