"""Virtual sites from one manifest: whole patients, every scan once, ASL where it was asked for."""

import pytest

from iedn.errors import ConfigError
from simulation.scenario import load_scenario
from simulation.split import split_manifest
from sites.cohort import load_manifest

OPTIONS = {"alpha": 0.5, "asl_only_at": None, "preset": "tiny", "seed": 1}


@pytest.fixture
def manifest(manifest_of):
    """12 patients with two scans each; the odd ones have ASL, the first half recurrence."""
    files = {"T1WI": "t1.nii.gz", "brain_mask": "m.nii.gz", "CBV": "c.nii.gz"}
    return manifest_of(
        files
        | {"patient_id": f"sub-{number:04d}", "scan_id": f"visit-{visit}"}
        | {"ASL": "asl.nii.gz" if number % 2 else ""}
        | {"label": "recurrence" if number <= 6 else "treatment_response"}
        for number in range(1, 13)
        for visit in (1, 2)
    )


def sites_of(paths):
    return [load_manifest(path).scans for path in paths]


@pytest.mark.parametrize("rule", ["patient", "modality", "label", "dirichlet"])
def test_every_scan_once_and_no_patient_at_two_sites(manifest, tmp_path, rule):
    *paths, scenario = split_manifest(
        manifest, tmp_path / "three.toml", rule=rule, num_sites=3, options=OPTIONS
    )
    sites = sites_of(paths)
    keys = [scan.key for scans in sites for scan in scans]
    assert sorted(keys) == sorted(s.key for s in load_manifest(manifest).scans)
    patients = [{scan.patient_id for scan in scans} for scans in sites]
    assert all(patients)
    assert sum(len(p) for p in patients) == 12
    assert set(load_scenario(str(scenario)).sites) == {"site-1", "site-2", "site-3"}


def test_by_patient_is_even(manifest, tmp_path):
    *paths, _ = split_manifest(
        manifest, tmp_path / "s.toml", rule="patient", num_sites=3, options=OPTIONS
    )
    assert [len(scans) for scans in sites_of(paths)] == [8, 8, 8]


def test_by_label_and_by_modality_separate(manifest, tmp_path):
    *paths, _ = split_manifest(
        manifest, tmp_path / "s.toml", rule="label", num_sites=2, options=OPTIONS
    )
    assert [{s.label for s in scans} for scans in sites_of(paths)] == [
        {"recurrence"},
        {"treatment_response"},
    ]
    *paths, _ = split_manifest(
        manifest, tmp_path / "s.toml", rule="modality", num_sites=2, options=OPTIONS
    )
    assert sorted({"ASL" in s.images for s in scans} == {True} for scans in sites_of(paths)) == [
        False,
        True,
    ]


def test_asl_only_at_one_site(manifest, tmp_path):
    *paths, _ = split_manifest(
        manifest,
        tmp_path / "s.toml",
        rule="patient",
        num_sites=3,
        options={**OPTIONS, "asl_only_at": 2},
    )
    with_asl = [any("ASL" in s.images for s in scans) for scans in sites_of(paths)]
    assert with_asl == [False, True, False]


def test_same_seed_same_sites(manifest, tmp_path):
    first, second = (
        [
            p.read_text()
            for p in split_manifest(
                manifest, tmp_path / "s.toml", rule="dirichlet", num_sites=3, options=OPTIONS
            )
        ]
        for _ in range(2)
    )
    assert first == second


def test_more_sites_than_patients_is_an_error(manifest, tmp_path):
    with pytest.raises(ConfigError, match="12 patients, 13 sites"):
        split_manifest(manifest, tmp_path / "s.toml", rule="patient", num_sites=13, options=OPTIONS)
