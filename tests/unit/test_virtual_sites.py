"""Virtual sites that share one cohort: a manifest each, whole patients, no image copied."""

import csv

import pytest

from simulation.phantom import PhantomCohort
from simulation.scenario import VirtualSites
from simulation.virtual import write_manifests
from sites.cohort import REQUIRED_COLUMNS, load_manifest


@pytest.fixture
def manifest(tmp_path):
    """8 patients with two scans each."""
    path = tmp_path / "manifest.csv"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, REQUIRED_COLUMNS, restval="")
        writer.writeheader()
        for number in range(1, 9):
            for visit in (1, 2):
                row = {"patient_id": f"sub-{number:04d}", "scan_id": f"visit-{visit}"}
                writer.writerow(row | {"T1WI": "t1.nii.gz", "CBV": "c.nii.gz"})
    return path


def virtual(count, patients=3):
    return VirtualSites(count=count, patients=patients, phantom=PhantomCohort(patients=8))


def scans(path):
    return [scan.key for scan in load_manifest(path).scans]


def test_every_site_has_its_patients_whole_and_no_one_twice(manifest):
    manifests = write_manifests(manifest, virtual(40), seed=1)
    assert len(manifests) == 40
    for path in manifests.values():
        keys = scans(path)
        assert len(keys) == len(set(keys)) == 6
        assert len({key.partition("/")[0] for key in keys}) == 3
    assert {key for path in manifests.values() for key in scans(path)} == set(scans(manifest))


def test_a_sites_patients_depend_on_the_seed_and_not_on_the_number_of_sites(manifest):
    few = {n: scans(p) for n, p in write_manifests(manifest, virtual(2), seed=1).items()}
    many = {n: scans(p) for n, p in write_manifests(manifest, virtual(20), seed=1).items()}
    other = {n: scans(p) for n, p in write_manifests(manifest, virtual(20), seed=2).items()}
    assert few == {name: many[name] for name in few}
    assert other != many
