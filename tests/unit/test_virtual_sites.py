"""Virtual sites that share one cohort: a manifest each, whole patients, no image copied."""

import pytest

from simulation.phantom import PhantomCohort
from simulation.scenario import VirtualSites
from simulation.virtual import write_manifests
from sites.cohort import load_manifest


@pytest.fixture
def manifest(manifest_of):
    """8 patients with two scans each."""
    files = {"T1WI": "t1.nii.gz", "CBV": "c.nii.gz"}
    return manifest_of(
        files | {"patient_id": f"sub-{number:04d}", "scan_id": f"visit-{visit}"}
        for number in range(1, 9)
        for visit in (1, 2)
    )


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
