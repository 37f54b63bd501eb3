"""Scenario files: the shipped ones are right, wrong ones are explained."""

from collections import Counter

import pytest

from iedn.errors import ConfigError
from simulation.phantom.latents import plan_cohort
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


def plans_of(site):
    return plan_cohort(site.phantom, seed=1)


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


def test_five_sites_have_the_promised_quirks():
    sites = load_scenario("five-sites").sites
    a, b, c, d, e = (sites[f"site-{letter}"].phantom.protocol for letter in "abcde")
    assert len(a.modalities) == 6
    assert (b.orientation, b.dtype, "ASL" in b.modalities) == ("LAS", "int16", False)
    assert (b.misregistration_probability, b.misregistration_mm) == ({"T2WI": 0.1}, 4.0)
    assert (c.asl_output, c.pld_s, "T1_C" in c.modalities) == ("4d", 2.0, False)
    assert (d.field, d.oblique_deg, d.missing_probability) == ("1.5T", 15.0, {"FLAIR": 0.3})
    assert d.cbv_scale != 1.0
    assert (e.has_cbv, e.has_labels) == (False, True)
    assert sites["site-e"].role == "evaluate"
    counts = Counter(outcome for plan in plans_of(sites["site-e"]) for outcome in plan.outcomes)
    assert counts == {"recurrence": 45, "treatment_response": 51}
    fields_of_view = [p.columns * p.spacing_mm for p in (a, b, c, d, e)]
    assert fields_of_view == pytest.approx([220.0] * 5, abs=1.0)


def test_paper_scale_has_the_papers_numbers():
    sites = load_scenario("paper-scale").sites
    patients, scans = Counter(), Counter()
    for name, site in sites.items():
        kind = "external" if site.role == "evaluate" else "ASL" in site.phantom.protocol.modalities
        plans = plans_of(site)
        patients[kind] += len(plans)
        scans[kind] += sum(len(plan.outcomes) for plan in plans)
        assert site.phantom.protocol.columns >= 192, name
    assert patients == {True: 129, False: 235, "external": 96}
    assert scans == {True: 208, False: 536, "external": 96}


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


def test_a_thousand_virtual_sites_are_one_table():
    scenario = load_scenario("many-sites")
    federation = scenario.federation()
    assert len(federation.sites) == scenario.virtual.count == 1000
    assert {entry.role for entry in federation.sites.values()} == {"train"}
    assert federation.rounds.quorum == 1000


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("[virtual]\ncount = 2\npatients = 4\n[virtual.phantom]\npatients = 3\n", "4 patients"),
        (
            "[virtual]\ncount = 2\npatients = 1\n[virtual.phantom]\npatients = 3\n"
            "[sites.virtual-0002.phantom]\npatients = 3\n",
            "virtual-0002",
        ),
    ],
)
def test_impossible_virtual_sites_are_explained(tmp_path, more, problem):
    path = tmp_path / "mine.toml"
    path.write_text(SMALLEST + more)
    with pytest.raises(ConfigError, match=problem):
        load_scenario(str(path))


def test_a_scenario_needs_sites(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(SMALLEST.partition("[sites")[0])
    with pytest.raises(ConfigError, match="virtual"):
        load_scenario(str(path))
