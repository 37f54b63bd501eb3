"""Numbers of the benchmark of federated synthesis, by hand on a few made-up units."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def numbers(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import federated_numbers

    return federated_numbers


@pytest.fixture
def page(numbers):
    import federated_page

    return federated_page


SITES = ("site-a", "site-b", "site-c", "site-d", "site-e")


def record(method, seed, psnr, *, asl="one", curve=((1, 10.0, 50.0), (2, 20.0, 80.0))):
    """Two patients a site, one scan each; ``psnr(site number, patient, subset)``."""
    models = SITES if method == "local" else ("shared",)
    rows = [
        {
            "model": model,
            "site": site,
            "subset": subset,
            "patient_id": f"sub-{patient}",
            "scan_id": "ses-1",
            "psnr_db": psnr(number, patient, subset),
            "ssim_percent": 70.0,
            "lesion_error": None if patient else 0.25,
        }
        for model in models
        for number, site in enumerate(SITES)
        for subset in ("all six", "without ASL", "T1WI, T2WI, FLAIR")
        for patient in (0, 1)
        if model in ("shared", site) or subset == "all six"
    ]
    unit = {"lesions": "default", "asl": asl, "method": method, "seed": seed}
    facts = {"cpu_s": 1.0, "versions": dict.fromkeys(("iedn", "torch", "numpy", "python"), "1")}
    return {"unit": unit, "rows": rows, "curve": [list(p) for p in curve], **facts}


def test_own_inputs_are_six_where_there_is_asl_and_five_elsewhere(numbers):
    one = record("fedavg", 1, lambda *key: 30.0 if key[2] == "all six" else 20.0)
    results = numbers.Results([one])
    means = numbers.site_means(results.values([one], numbers.OWN, "psnr_db"))
    assert means == {"site-a": 30.0} | dict.fromkeys(SITES[1:], 20.0)


def test_mean_worst_and_spread_are_over_sites(numbers):
    one = record("pooled", 1, lambda site, patient, _: 20.0 + site + patient)
    values = numbers.Results([one]).values([one], "all six", "psnr_db")
    # Site means 20.5, 21.5, ... 24.5: mean 22.5, worst 20.5, SD sqrt(10 / 4).
    mean = numbers.estimate(values)
    assert mean.value == 22.5
    # Every site draws two of its two patients: each site's mean is 0.5 lower to 0.5 higher.
    assert 22.0 <= mean.low < 22.5 < mean.high <= 23.0
    assert numbers.estimate(values, numbers.worst_site).value == 20.5
    spread = numbers.estimate(values, numbers.spread_of_sites)
    assert spread.value == pytest.approx(2.5**0.5)


def test_a_difference_that_all_scans_share_has_no_width(numbers):
    seeds = (1, 2, 3)
    base = [record("fedavg", s, lambda site, p, _, s=s: 20.0 + site * p + s) for s in seeds]
    more = [record("pooled", s, lambda site, p, _, s=s: 20.5 + site * p + s) for s in seeds]
    results = numbers.Results([*base, *more])
    of = [results.values(r, "all six", "psnr_db") for r in (more, base)]
    found = numbers.estimate(numbers.difference(*of))
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_a_patient_is_drawn_for_all_seeds(numbers):
    """Five seeds that give the same values are as uncertain as one: the patients are the same."""
    records = [record("fedavg", s, lambda site, p, _: 20.0 + 4.0 * p) for s in range(1, 6)]
    widths = []
    for some in (records[:1], records):
        values = numbers.Results(some).values(some, "all six", "psnr_db")
        found = numbers.estimate(values)
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.15)


def test_rounds_until_95_percent_of_pooled(numbers):
    pooled = record("pooled", 1, lambda *_: 20.0)  # last PSNR 20: the goal is 19
    slow = record("fedavg", 1, lambda *_: 20.0, curve=((1, 18.9, 60.0), (2, 19.0, 75.0)))
    never = record("fedavg", 1, lambda *_: 20.0, curve=((1, 10.0, 60.0), (2, 18.0, 75.0)))
    assert numbers.rounds_to_pooled(slow, pooled, "psnr_db") == 2
    assert numbers.rounds_to_pooled(never, pooled, "psnr_db") is None
    assert numbers.rounds_to_pooled(slow, pooled, "ssim_percent") is None  # 75 < 76


def test_gain_of_the_last_fifth(numbers):
    curve = [(number, float(number), 50.0) for number in range(1, 11)]
    assert numbers.late_gain(record("pooled", 1, lambda *_: 20.0, curve=curve)) == 2.0


def test_the_best_single_site_is_chosen_at_each_site(numbers):
    rng = np.random.default_rng(0)
    local = record("local", 1, lambda *_: float(rng.normal(20.0)))
    shared = record("modality-aware", 1, lambda *_: 25.0)
    results = numbers.Results([local, shared])
    matrix = numbers.cross_site(results, [local])
    found = numbers.best_single_site(results, [shared], [local])
    for site, (best, above) in found.items():
        assert best == max(matrix, key=lambda model: matrix[model][site])
        assert above.value == pytest.approx(25.0 - matrix[best][site])


def test_the_page_says_what_is_missed_and_what_was_not_run(page, tmp_path):
    records = [
        record("pooled", 1, lambda *_: 22.0, asl="all"),
        record("modality-aware", 1, lambda *_: 21.0, asl="all"),
        record("pooled", 1, lambda *_: 22.0),
    ]
    scenario = Path(page.__file__).with_name("federated_synthesis.toml")
    trials = [
        {"name": "as planned", "psnr_db": 21.0, "ssim_percent": 70.0},
        {"name": page.TUNED, "psnr_db": 21.5, "ssim_percent": 71.0},
    ]
    page.write_page(tmp_path, records, trials, scenario)
    text = (tmp_path / "federated-synthesis.md").read_text()
    assert "| gap to pooled <= 0.3 dB | +1.00 (+1.00 to +1.00) | **missed** |" in text
    assert "| gap to pooled <= 0.5 SSIM points | +0.00 (+0.00 to +0.00) | met |" in text
    assert f"**Not run yet: each site alone, modality-aware, {page.TUNED}.**" in text
    assert text.index(f"| {page.TUNED} | 21.50 |") < text.index("| as planned | 21.00 |")
    assert "Phantom results" in text
    assert (tmp_path / "federated-synthesis.json").exists()
