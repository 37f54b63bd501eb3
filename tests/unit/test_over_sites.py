"""What the coordinator keeps of each round's metrics: mean, spread and worst over sites."""

import pytest

from server.evaluation import best_round, over_sites


def site(**metrics):
    return {"metrics": metrics, "num_scans": 10}


def test_mean_spread_and_worst_site_of_each_metric():
    found = over_sites(
        {
            "site-a": site(psnr_db_mean=20.0, mae_mean=0.05, bias_mean=-0.03, psnr_db_sd=1.0),
            "site-b": site(psnr_db_mean=24.0, mae_mean=0.02, bias_mean=0.01),
        }
    )
    assert set(found) == {"psnr_db", "mae", "bias"}
    psnr = found["psnr_db"]
    assert (psnr["mean"], psnr["worst"], psnr["worst_site"]) == (22.0, 20.0, "site-a")
    assert psnr["sd"] == pytest.approx(8**0.5)  # sqrt((2^2 + 2^2) / 1)
    assert found["mae"]["worst_site"] == "site-a"
    assert (found["bias"]["worst_site"], found["bias"]["worst"]) == ("site-a", -0.03)
    assert found["bias"]["mean"] == pytest.approx(-0.01)


def test_strata_count_the_sites_that_gave_them():
    found = over_sites(
        {
            "site-a": site(with_asl_ssim_percent_mean=80.0, without_asl_ssim_percent_mean=70.0),
            "site-b": site(without_asl_ssim_percent_mean=60.0),
        }
    )
    assert found["with_asl_ssim_percent"] == {
        "mean": 80.0,
        "sd": None,
        "worst": 80.0,
        "worst_site": "site-a",
        "sites": 1,
    }
    assert found["without_asl_ssim_percent"]["worst_site"] == "site-b"
    assert over_sites({}) == {}


@pytest.mark.parametrize(
    ("rule", "scores", "best"),
    [
        ("mean-psnr", [20.0, 21.0, 22.0], 3),  # the last round can win
        ("mean-psnr", [20.0, 22.0, 21.0], 2),
        ("mean-psnr", [20.0, 22.0, 22.0], 3),  # the later of equals
        ("worst-site-psnr", [20.0, None, 19.0], 1),
        ("last", [22.0, 21.0, 20.0], 3),
        ("mean-psnr", [None], None),
    ],
)
def test_best_round_by_rule(rule, scores, best):
    evaluations = [
        {"split": "validation", "score": score, "round": number}
        for number, score in enumerate(scores, start=1)
    ]
    assert best_round(evaluations, rule) == best
