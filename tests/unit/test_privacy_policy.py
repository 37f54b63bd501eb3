"""``[privacy]`` of a site: what the tiers mean, and who may ask for what."""

import pytest

from client.leaving import what_leaves
from iedn.config import PrivacyDemand
from iedn.errors import ConfigError, PolicyError
from iedn.modalities import Modality
from sites.config import load_site_config
from sites.egress import TrainingCounts
from sites.privacy import PrivacyConfig, check_demand

COUNTS = TrainingCounts(
    scans=23,
    patients=12,
    scans_by_modality={Modality.T1WI: 23},
    patients_by_modality={Modality.T1WI: 12},
)
PARTS = dict.fromkeys(("train", "validation", "test", "all"), COUNTS)


def site(tmp_path, *lines):
    text = ['name = "site-a"', 'manifest = "manifest.csv"', "[privacy]", *lines]
    (tmp_path / "site.toml").write_text("\n".join(text))
    return load_site_config(tmp_path / "site.toml")


def test_tiers_have_their_defaults_and_off_is_the_default():
    off, guard, formal = (PrivacyConfig(tier=t) for t in ("off", "reconstruction-guard", "formal"))
    assert PrivacyConfig() == off
    assert [p.is_on for p in (off, guard, formal)] == [False, True, True]
    assert (guard.budget, guard.trained_part) == (200.0, "all")
    assert (formal.budget, formal.trained_part) == (8.0, "decoder")
    told = PrivacyConfig(tier="formal", epsilon=3.0, part="norms")
    assert (told.budget, told.trained_part) == (3.0, "norms")


def test_large_epsilon_may_not_be_called_formal(tmp_path):
    with pytest.raises(ConfigError, match=r"privacy.*epsilon up to 10 with tier 'formal'"):
        site(tmp_path, 'tier = "formal"', "epsilon = 50.0")
    assert site(tmp_path, 'tier = "formal"', "epsilon = 10.0").privacy.budget == 10.0


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ('tier = "some"', "reconstruction-guard"),
        ("noise_multiplier = 0.0", "0.1"),
        ("sample_rate = 1.5", "1"),
        ("sigma = 1.0", "noise_multiplier"),
    ],
)
def test_wrong_value_is_named_with_what_is_allowed(tmp_path, line, allowed):
    with pytest.raises(ConfigError) as refused:
        site(tmp_path, line)
    assert f"privacy.{line.split()[0]}" in str(refused.value)
    assert allowed in refused.value.allowed


def test_a_run_may_ask_for_a_weaker_tier_or_the_same_only():
    formal = PrivacyConfig(tier="formal")
    for tier in ("off", "reconstruction-guard", "formal"):
        check_demand(formal, PrivacyDemand(tier=tier))
    with pytest.raises(PolicyError, match=r"asks for privacy\.tier 'reconstruction-guard'"):
        check_demand(PrivacyConfig(), PrivacyDemand(tier="reconstruction-guard"))


def test_hospital_reads_what_its_tier_promises_and_what_not(tmp_path):
    def said(*lines):
        return next(s for s in what_leaves(site(tmp_path, *lines), PARTS) if "noise" in s)

    assert "updates are exact" in said()
    guard = said('tier = "reconstruction-guard"')
    assert "no guarantee against finding out whether a patient took part" in guard
    formal = said('tier = "formal"', "epsilon = 3.0")
    assert "epsilon 3 over all runs" in formal
    assert "trained and sent: decoder" in formal
    assert "not covered" in formal
