"""From ``site.toml`` to samples: splits, counts, quarantine, and a cache that heals itself."""

import pickle
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from iedn.config import GridConfig
from iedn.errors import CohortError
from iedn.modalities import Modality
from sites import preparation
from sites.cache import ScanCache, cache_key
from sites.cohort import load_manifest
from sites.config import SiteConfig, load_site_config
from sites.dataset import prepare_cohort
from sites.preparation import ScanStore
from sites.preprocessing import prepare_scan

GRID = GridConfig(rows=16, columns=16, spacing_mm=10.0)
HEADER = "patient_id,scan_id,T1WI,T2WI,FLAIR,ADC,T1_C,ASL,CBV,brain_mask,label,split,exclude_reason"
AFFINE = np.array([[-8.0, 0, 0, 60], [0, 8.0, 0, -60], [0, 0, 6.0, -9], [0, 0, 0, 1]])
SHAPE = (16, 16, 4)


def save(path: Path, values: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), AFFINE), path)


def brain() -> np.ndarray:
    x, y, _ = np.indices(SHAPE)
    return ((x - 7.5) ** 2 + (y - 7.5) ** 2) < 36


def make_site(folder: Path, *, role: str = "train", patients: int = 5, extra: str = "") -> Path:
    """A site with one scan a patient; the even ones have ASL. Returns ``site.toml``."""
    rng = np.random.default_rng(7)
    rows = [HEADER]
    save(folder / "mask.nii.gz", brain())
    for number in range(patients):
        names = [f"t1-{number}.nii.gz", f"asl-{number}.nii.gz", f"cbv-{number}.nii.gz"]
        for name in names:
            save(folder / name, brain() * rng.uniform(50, 150, SHAPE))
        asl = names[1] if number % 2 == 0 else ""
        patient = f"sub-{number:04d}"
        rows.append(f"{patient},ses-01,{names[0]},,,,,{asl},{names[2]},mask.nii.gz,,,")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    text = f'name = "a"\nrole = "{role}"\nmanifest = "manifest.csv"\n{extra}'
    (folder / "site.toml").write_text(text)
    return folder / "site.toml"


@pytest.fixture
def config(tmp_path) -> SiteConfig:
    return load_site_config(make_site(tmp_path))


def codes(cohort) -> list[tuple[str, str, str]]:
    return [(q.code, q.scan, q.modality) for q in cohort.quarantined]


def test_a_site_becomes_samples(config):
    cohort = prepare_cohort(config, GRID)
    assert (len(cohort.train), len(cohort.validation), len(cohort.test)) == (3, 1, 1)
    assert len(cohort.all) == len(cohort.records) == 5
    parts = [cohort.train, cohort.validation, cohort.test]
    patients = [record.patient_id for part in parts for record in part.records]
    assert sorted(patients) == [f"sub-{n:04d}" for n in range(5)]
    assert cohort.quarantined == ()


def test_samples_are_float32_with_a_brain_mean_of_a_quarter(config):
    cohort = prepare_cohort(config, GRID)
    assert cohort.all.shapes == [(4, 16, 16)] * 5
    for index, record in enumerate(cohort.all.records):
        sample = cohort.all[index]
        assert set(sample.modalities) == set(record.images)
        for tensor in [*sample.images.values(), sample.cbv]:
            assert tensor.shape == (1, 4, 16, 16)
            assert tensor.dtype == torch.float32
            inside = tensor[sample.brain_mask > 0]
            torch.testing.assert_close(inside.mean(), torch.tensor(0.25))


def test_counts_are_of_training_scans(config):
    cohort = prepare_cohort(config, GRID)
    with_asl = sum(Modality.ASL in r.images for r in cohort.train.records)
    assert cohort.counts == {Modality.T1WI: 3} | ({Modality.ASL: with_asl} if with_asl else {})


def test_an_evaluating_site_uses_all_scans_without_cbv(tmp_path):
    config = load_site_config(make_site(tmp_path, role="evaluate"))
    table = config.manifest.read_text().splitlines()
    rows = [",".join(c if i != 8 else "" for i, c in enumerate(r.split(","))) for r in table[1:]]
    config.manifest.write_text("\n".join([HEADER, *rows]) + "\n")
    cohort = prepare_cohort(config, GRID)
    assert (len(cohort.train), len(cohort.validation), len(cohort.test)) == (0, 5, 5)
    assert cohort.counts == {Modality.T1WI: 5, Modality.ASL: 3}
    assert cohort.quarantined == ()
    assert cohort.all[0].cbv is None


def test_a_bad_scan_does_not_stop_the_others(config):
    folder = config.folder
    for name in ("t1-1", "asl-2", "cbv-3"):
        path = folder / f"{name}.nii.gz"
        path.write_bytes(path.read_bytes()[:200])
    cohort = prepare_cohort(config, GRID)
    assert codes(cohort) == [
        ("E101", "sub-0001/ses-01", "T1WI"),
        ("E101", "sub-0002/ses-01", "ASL"),
        ("E101", "sub-0003/ses-01", "CBV"),
        ("E403", "sub-0003/ses-01", "CBV"),
    ]
    assert [r.patient_id[-1] for r in cohort.records] == ["0", "2", "3", "4"]
    parts = [cohort.train, cohort.validation, cohort.test]
    assert sorted(r.patient_id[-1] for p in parts for r in p.records) == ["0", "2", "4"]
    assert set(cohort.records[1].images) == {Modality.T1WI}
    assert set(cohort.all[1].images) == {Modality.T1WI}
    assert cohort.records[2].cbv is None


def test_findings_of_a_bad_modality_survive_the_cache(config):
    path = config.folder / "asl-2.nii.gz"
    path.write_bytes(path.read_bytes()[:200])
    assert codes(prepare_cohort(config, GRID)) == codes(prepare_cohort(config, GRID)) != []


def test_a_repaired_file_is_used(config):
    path = config.folder / "t1-1.nii.gz"
    good = path.read_bytes()
    path.write_bytes(good[:200])
    assert len(prepare_cohort(config, GRID).records) == 4
    path.write_bytes(good)
    assert len(prepare_cohort(config, GRID).records) == 5


def test_a_broken_file_does_not_move_other_patients(tmp_path):
    config = load_site_config(make_site(tmp_path, patients=9))

    def splits() -> dict[str, int]:
        cohort = prepare_cohort(config, GRID)
        parts = [cohort.train, cohort.validation, cohort.test]
        return {r.patient_id: n for n, part in enumerate(parts) for r in part.records}

    before = splits()
    for number in range(9):
        path = tmp_path / f"t1-{number}.nii.gz"
        good = path.read_bytes()
        path.write_bytes(good[:99])
        assert splits() == {k: v for k, v in before.items() if k != f"sub-{number:04d}"}
        path.write_bytes(good)


def test_an_interrupt_does_not_wait_for_the_whole_cohort(config, monkeypatch):
    prepared = []

    def interrupted(done, total):
        raise KeyboardInterrupt

    def counting(record, grid, **settings):
        prepared.append(record.key)
        time.sleep(0.05)  # so that the interrupt comes while scans are left
        return prepare_scan(record, grid, **settings)

    monkeypatch.setattr(preparation, "prepare_scan", counting)
    with pytest.raises(KeyboardInterrupt):
        prepare_cohort(config, GRID, progress=interrupted)
    assert len(prepared) < 5


def test_excluded_scans_are_not_read(config):
    text = config.manifest.read_text().replace("mask.nii.gz,,,", "mask.nii.gz,,,motion", 1)
    config.manifest.write_text(text)
    (config.folder / "t1-0.nii.gz").unlink()
    cohort = prepare_cohort(config, GRID)
    assert len(cohort.records) == 4
    assert cohort.quarantined == ()


def test_a_cohort_without_a_usable_scan_says_why(config):
    (config.folder / "mask.nii.gz").unlink()
    with pytest.raises(CohortError, match=r"none of 5 scans .* training.*E100 sub-0000/ses-01"):
        prepare_cohort(config, GRID)


def test_progress_counts_every_scan_and_workers_change_nothing(config, tmp_path):
    seen = []
    one = prepare_cohort(config, GRID, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 5) for n in range(1, 6)]
    fresh = config.model_copy(update={"cache": tmp_path / "other"})
    many = prepare_cohort(fresh, GRID, workers=3)
    assert [r.key for r in many.train.records] == [r.key for r in one.train.records]
    for index in range(5):
        torch.testing.assert_close(many.all[index].cbv, one.all[index].cbv, rtol=0, atol=0)


def test_a_second_start_reads_no_image(config, monkeypatch):
    first = prepare_cohort(config, GRID)
    expected = [first.all[n].images[Modality.T1WI].clone() for n in range(5)]

    def refuse(*_, **__):
        raise AssertionError("an image was read again")

    monkeypatch.setattr(preparation, "prepare_scan", refuse)
    second = prepare_cohort(config, GRID)
    for index in range(5):
        torch.testing.assert_close(
            second.all[index].images[Modality.T1WI], expected[index], rtol=0, atol=0
        )


def test_the_key_follows_content_grid_and_volume_but_not_names(config, tmp_path):
    from dataclasses import replace

    record = load_manifest(config.manifest).scans[0]
    key = cache_key(record, GRID)
    renamed = tmp_path / "renamed.nii.gz"
    renamed.write_bytes(record.images[Modality.T1WI].read_bytes())
    moved = replace(record, images={**record.images, Modality.T1WI: renamed}, patient_id="x")
    assert cache_key(moved, GRID) == key
    others = {
        cache_key(replace(record, asl_volume=1), GRID),
        cache_key(replace(record, cbv=None), GRID),
        cache_key(record, GridConfig(rows=16, columns=16, spacing_mm=9.0)),
    }
    save(record.images[Modality.T1WI], brain() * 3.0)
    others.add(cache_key(record, GRID))
    assert len(others | {key}) == 5


def test_the_cache_names_no_patient_and_is_for_its_owner(config):
    prepare_cohort(config, GRID)
    files = sorted(config.cache.iterdir())
    assert len(files) == 5
    assert config.cache.stat().st_mode & 0o077 == 0
    for file in files:
        assert len(file.stem) == 64
        assert int(file.stem, 16) >= 0
        content = file.read_bytes()
        assert b"sub-" not in content
        assert str(config.folder).encode() not in content


def test_a_prepared_scan_is_the_same_from_the_cache(config):
    record = load_manifest(config.manifest).scans[0]
    scan, cache = prepare_scan(record, GRID), ScanCache(config.cache)
    cache.store("0" * 64, scan)
    loaded = cache.load("0" * 64)
    assert loaded is not None
    assert set(loaded.images) == set(scan.images)
    np.testing.assert_array_equal(loaded.brain_mask, scan.brain_mask)
    np.testing.assert_array_equal(loaded.geometry.grid.affine, scan.geometry.grid.affine)
    np.testing.assert_array_equal(loaded.geometry.file_affine, scan.geometry.file_affine)
    assert loaded.geometry.patient.shape == scan.geometry.patient.shape == (4, 16, 16)
    assert (loaded.warnings, loaded.refused) == (scan.warnings, scan.refused)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "gone", "one bit"])
def test_a_damaged_cache_file_is_rebuilt(config, damage):
    expected = prepare_cohort(config, GRID).all[0].cbv.clone()
    record = load_manifest(config.manifest).scans[0]
    path = ScanCache(config.cache).path(cache_key(record, GRID))
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-3] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(
            {"cut": content[:-9], "empty": b"", "text": b"no", "one bit": bytes(flipped)}[damage]
        )
    torch.testing.assert_close(prepare_cohort(config, GRID).all[0].cbv, expected, rtol=0, atol=0)
    assert path.read_bytes() == content


def test_memory_is_bounded(config, monkeypatch):
    entries = load_manifest(config.manifest).scans
    cache = ScanCache(config.cache)
    keys = [cache_key(record, GRID) for record in entries]
    built = []

    def counting(record, grid, **settings):
        built.append(record.patient_id)
        return prepare_scan(record, grid, **settings)

    monkeypatch.setattr(preparation, "prepare_scan", counting)
    monkeypatch.setattr(cache, "load", lambda key: None)
    # Scan 1 has three arrays of 4 * 16 * 16 float32, scans 0 and 2 have four.
    store = ScanStore(cache, GRID, keep_bytes=7 * 4096)
    for index in (0, 1, 0, 2, 0):
        store.load(entries[index], keys[index])
    # 0 and 1 fit; 2 pushes out 1 and 0 (8 arrays would be too many); 0 is made again.
    assert built == ["sub-0000", "sub-0001", "sub-0002", "sub-0000"]


def test_datasets_travel_to_loader_processes(config):
    train = prepare_cohort(config, GRID).train
    copy = pickle.loads(pickle.dumps(train))  # noqa: S301 - our own bytes
    torch.testing.assert_close(copy[0].cbv, train[0].cbv, rtol=0, atol=0)


def test_a_round_reads_a_scan_once_and_the_next_round_nothing(config, monkeypatch):
    opened = []
    load = ScanCache.load

    def counting(cache, key):
        opened.append(key)
        return load(cache, key)

    prepare_cohort(config, GRID)
    monkeypatch.setattr(ScanCache, "load", counting)
    monkeypatch.setattr(preparation, "prepare_scan", None)  # nothing is prepared again
    train = prepare_cohort(config, GRID).train
    assert opened == []  # a start reads headers only
    for _ in range(2):
        for index in range(len(train)):
            train[index]
        assert len(opened) == len(set(opened)) == len(train)


def test_cached_arrays_are_mapped_and_writing_to_them_leaves_the_file(config):
    prepared = prepare_cohort(config, GRID).train.prepared(0)
    again = prepare_cohort(config, GRID).train
    assert not again.prepared(0).brain_mask.flags.owndata
    again.prepared(0).brain_mask[:] = 7
    fresh = prepare_cohort(config, GRID).train.prepared(0)
    assert (fresh.brain_mask == prepared.brain_mask).all()


def test_mapped_scans_hold_no_file_open(config):
    prepare_cohort(config, GRID)
    train = prepare_cohort(config, GRID).train
    before = len(list(Path("/proc/self/fd").iterdir()))
    scans = [train.prepared(index) for index in range(len(train))]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert all(scan.brain_mask.any() for scan in scans)
