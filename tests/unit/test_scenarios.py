"""Scenario files: the shipped ones are right, wrong ones are explained."""

import pytest

from iedn.errors import ConfigError
from simulation.scenario import load_scenario, shipped_scenarios

SMALLEST = """
name = "mine"
preset = "tiny"
[rounds]
count = 1
quorum = 1
[sites.site-a.phantom]
patients = 3
"""


@pytest.mark.parametrize("name", sorted(shipped_scenarios()))
def test_shipped_scenario_loads_and_says_what_it_is(name):
    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario.description
    assert scenario.federation(seed=5).seed == 5
    assert scenario.federation().simulation


def test_demo_sites_are_the_promised_ones():
    sites = load_scenario("demo").sites
    trainers = [s for s in sites.values() if s.role == "train"]
    assert len(trainers) == 4
    modalities = [set(s.phantom.protocol.modalities) for s in trainers]
    assert sorted(len(m) for m in modalities) == [5, 5, 6, 6]
    external = sites["site-x"].phantom.protocol
    assert not external.has_cbv
    assert external.has_labels
    assert sites["site-d"].phantom.protocol.missing_probability == {"FLAIR": 0.3}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ('preset = "huge"', "preset"),
        ("colour = 3", "colour"),
        ("[rounds]\ncount = 0", "rounds.count"),
        ("[rounds]\ncount = 1\nquorum = 2", "quorum"),
        ("[sites.Site_A]\nrole = 'train'", "sites"),
        ("[sites.site-a]\nrole = 'boss'", "role"),
        ("[training]\nlearning_rate = -1", "training.learning_rate"),
    ],
)
def test_mistake_is_named_with_its_place(tmp_path, change, where):
    path = tmp_path / "mine.toml"
    first = change.splitlines()[0]
    base = (
        SMALLEST.replace("\n[rounds]\ncount = 1\nquorum = 1", "")
        if "[rounds]" in first
        else SMALLEST
    )
    base = base.replace('preset = "tiny"\n', "") if first.startswith("preset") else base
    text = base + "\n" + change if first.startswith("[") else change + base
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)) as caught:
        load_scenario(str(path))
    assert where in str(caught.value)
    assert caught.value.exit_code == 3


def test_unknown_scenario_lists_the_shipped_ones():
    with pytest.raises(ConfigError, match="demo"):
        load_scenario("nothing-like-it")
