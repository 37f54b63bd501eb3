"""The synthetic map of one patient: which files are taken, where the map lies, what it says."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

import client.cli
from client.one_scan import OPTIONS
from iedn.checkpoint import save_checkpoint
from iedn.config import GridConfig, NetworkConfig
from iedn.modalities import Modality
from iedn.model import build_network
from iedn.parameters import flatten, state_by_group
from sites import synthetic
from sites.synthetic import NOTICE

GRID = GridConfig(rows=32, columns=32, spacing_mm=6.875)
# Oblique and stored left to right, bottom to top: the map has to come back onto these voxels.
AFFINE = np.array([[-6.0, 1.0, 0, 70], [1.0, 6.0, 0, -80], [0, 0, 7.0, -9], [0, 0, 0, 1]])
SHAPE = (26, 30, 4)
SECRET = b"family name of a patient"


def save(path: Path, values: np.ndarray) -> Path:
    image = nibabel.Nifti1Image(values.astype(np.float32), AFFINE)
    image.header["descrip"] = SECRET
    nibabel.save(image, path)
    return path


def brain() -> np.ndarray:
    x, y, z = np.indices(SHAPE)
    return ((x - 12.5) / 11) ** 2 + ((y - 14.5) / 13) ** 2 + ((z - 1.5) / 2.6) ** 2 < 1


def tissue(seed: int) -> np.ndarray:
    return brain() * np.random.default_rng(seed).uniform(50, 110, SHAPE)


def model_file(path: Path, *modalities: Modality, architecture: str = "iedn") -> Path:
    config = NetworkConfig(
        architecture=architecture, modalities=modalities, base_channels=4, depth=2
    )
    tensors = flatten(state_by_group(build_network(config, seed=1)))
    save_checkpoint(path, tensors, config, metadata={"grid": GRID.model_dump_json(), "round": "3"})
    return path


@pytest.fixture
def place(tmp_path) -> Path:
    """A site without a cohort, a model of all modalities, and one scan in sub-0007/visit-1."""
    (tmp_path / "site.toml").write_text('name="b"\nrole="evaluate"\nmanifest="none.csv"\n')
    model_file(tmp_path / "model.safetensors", *Modality)
    scan = tmp_path / "incoming" / "sub-0007" / "visit-1"
    scan.mkdir(parents=True)
    for seed, name in enumerate(("T1WI", "T2WI", "ASL")):
        save(scan / f"{name}.nii.gz", tissue(seed))
    save(scan / "brain_mask.nii.gz", brain())
    return tmp_path


@pytest.fixture
def synthesize(place, call):
    def run(*words, model="model.safetensors"):
        start = ["--site", place / "site.toml", "synthesize", "--model", place / model]
        return call(client.cli.main, *start, *words)

    return run


def files(place: Path, **names: str) -> list[object]:
    folder = place / "incoming" / "sub-0007" / "visit-1"
    return [w for option, name in names.items() for w in (f"--{option}", folder / name)]


T1_AND_MASK = {"t1": "T1WI.nii.gz", "mask": "brain_mask.nii.gz"}


def maps(place: Path) -> list[Path]:
    return sorted((place / "synthetic").rglob("*.nii.gz"))


def test_a_map_of_named_files_lies_on_the_t1(place, synthesize):
    words = files(place, **T1_AND_MASK, t2="T2WI.nii.gz", asl="ASL.nii.gz")
    code, out, _ = synthesize(*words, "--id", "sub-0042")
    assert code == 0
    path = place / "synthetic" / "sub-0042" / "scan-1_synthetic-cbv.nii.gz"
    assert maps(place) == [path]
    assert str(path) in out
    assert NOTICE in out
    made = nibabel.load(path)
    t1 = nibabel.load(place / "incoming/sub-0007/visit-1/T1WI.nii.gz")
    np.testing.assert_array_equal(made.affine, t1.affine)
    assert made.shape == t1.shape
    assert made.header.get_data_dtype() == np.float32
    values = np.asarray(made.dataobj)
    assert np.isfinite(values).all()
    # There is a map where brain is, and none in the corners.
    assert (values[brain()] > 0).mean() > 0.9
    assert values[0, 0].max() == values[-1, -1].max() == 0.0
    assert SECRET not in path.read_bytes()
    assert bytes(made.header["descrip"]).strip(b"\0") == b""


def test_the_sidecar_says_what_went_in_and_what_was_found(place, synthesize):
    scan = place / "incoming" / "sub-0007" / "visit-1"
    values = tissue(5)
    values[10:14, 12:16, 1] = -50.0
    save(scan / "T2WI.nii.gz", values)
    code, out, _ = synthesize("--folder", scan, "--json")
    assert code == 0
    printed = json.loads(out)
    side = json.loads((place / "synthetic/sub-0007/visit-1_synthetic-cbv.json").read_text())
    assert side["notice"] == "SYNTHETIC CBV MAP - research use only, not for diagnosis"
    assert side["inputs_used"] == ["T1WI", "T2WI", "ASL"]
    assert side["inputs_missing"] == ["FLAIR", "ADC", "T1_C"]
    assert len(side["model_hash"]) == 64
    assert {"W204 T2WI", "W502 T1WI"} <= set(side["qc_flags"])
    assert {k: printed[k] for k in side} == side
    assert {f["code"] for f in printed["findings"]} == {f.split()[0] for f in side["qc_flags"]}


def test_files_and_their_folder_give_the_same_map(place, synthesize):
    words = files(place, **T1_AND_MASK, t2="T2WI.nii.gz", asl="ASL.nii.gz")
    assert synthesize(*words, "--out", place / "a", "--id", "sub-0007")[0] == 0
    folder = place / "incoming" / "sub-0007" / "visit-1"
    assert synthesize("--folder", folder, "--out", place / "b")[0] == 0
    (first,), (second,) = (sorted((place / n).rglob("*.nii.gz")) for n in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_raw_asl_is_never_taken_by_its_first_volume(place, synthesize):
    scan = place / "incoming" / "sub-0007" / "visit-1"
    save(scan / "ASL.nii.gz", np.stack([tissue(7), tissue(8)], axis=3))
    code, out, _ = synthesize("--folder", scan, "--json")
    assert code == 0
    content = json.loads(out)
    assert "ASL" in content["inputs_missing"]
    assert "E201" in content["qc_flags"]
    assert any("aslcontext.tsv" in f["problem"] for f in content["findings"])
    # With the table, its cbf volume is taken, and the map is that of this volume alone.
    (scan / "aslcontext.tsv").write_text("volume_type\nm0scan\ncbf\n")
    words = files(place, **T1_AND_MASK, asl="ASL.nii.gz")
    code, out, _ = synthesize(*words, "--json", "--out", place / "table")
    assert code == 0
    assert json.loads(out)["inputs_used"] == ["T1WI", "ASL"]
    second = save(place / "second.nii.gz", tissue(8))
    alone = [*files(place, **T1_AND_MASK), "--asl", second, "--out", place / "alone"]
    assert synthesize(*alone)[0] == 0
    (first,), (second,) = ((place / n).rglob("*.nii.gz") for n in ("table", "alone"))
    assert first.read_bytes() == second.read_bytes()


def test_a_damaged_image_is_left_out_with_its_code(place, synthesize):
    path = place / "incoming/sub-0007/visit-1/T2WI.nii.gz"
    path.write_bytes(path.read_bytes()[:300])
    code, out, _ = synthesize("--folder", path.parent)
    assert code == 0
    assert "E101 T2WI: truncated" in out
    assert "inputs used: T1WI, ASL\n" in out
    assert "inputs missing: T2WI, FLAIR, ADC, T1_C\n" in out


def test_a_bids_session_finds_its_derivatives(place, synthesize):
    root = place / "dataset"
    for session in ("ses-1", "ses-2"):
        stem = f"sub-0003_{session}"
        raw = root / "sub-0003" / session / "anat"
        derived = root / "derivatives" / "x" / "sub-0003" / session / "anat"
        for folder in (raw, derived):
            folder.mkdir(parents=True)
        save(raw / f"{stem}_T1w.nii.gz", tissue(11))
        save(derived / f"{stem}_desc-brain_mask.nii.gz", brain())
    save(root / "sub-0003/ses-2/anat/sub-0003_ses-2_FLAIR.nii.gz", tissue(12))
    code, out, _ = synthesize("--folder", root / "sub-0003" / "ses-2", "--json")
    assert code == 0
    content = json.loads(out)
    assert content["inputs_used"] == ["T1WI", "FLAIR"]
    assert content["map"].endswith("synthetic/sub-0003/ses-2_synthetic-cbv.nii.gz")


def test_a_map_is_not_named_after_a_person(place, synthesize):
    folder = place / "incoming" / "SURNAME_Given"
    (place / "incoming" / "sub-0007").rename(folder)
    code, out, _ = synthesize("--folder", folder / "visit-1")
    assert code == 0
    assert "SURNAME" not in out
    (path,) = maps(place)
    assert path.parent.name.startswith("scan-")
    again = path.read_bytes()
    assert synthesize("--folder", folder / "visit-1")[0] == 0
    assert maps(place) == [path]
    assert path.read_bytes() == again
    assert b"SURNAME" not in path.with_name("visit-1_synthetic-cbv.json").read_bytes()


def test_a_picture_is_drawn_beside_the_map(place, synthesize):
    words = [*files(place, **T1_AND_MASK), "--id", "sub-0042"]
    code, out, _ = synthesize(*words, "--picture", "--json")
    assert code == 0
    picture = Path(json.loads(out)["picture"])
    assert picture == place / "synthetic" / "sub-0042" / "scan-1_inputs.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_every_modality_has_its_option():
    assert set(OPTIONS) == set(Modality)


@pytest.mark.parametrize(
    ("names", "more", "code", "said"),
    [
        ({"t2": "T2WI.nii.gz", "mask": "brain_mask.nii.gz"}, (), 3, "--t1: no T1"),
        ({"t1": "T1WI.nii.gz"}, (), 4, "E211 files/scan-1 brain_mask"),
        ({}, ("--picture",), 3, "--t1"),
        ({"t1": "none.nii.gz"}, (), 3, "no such file"),
        (T1_AND_MASK | {"flair": "none.nii.gz"}, (), 3, "--flair"),
        (T1_AND_MASK, ("--folder", "x"), 3, "--folder and --t1"),
        ({}, ("--folder", "x"), 3, "no such folder"),
        ({}, ("--id", "sub-0007"), 3, "--t1"),
        (T1_AND_MASK, ("--id", "a/b"), 3, "--id a/b"),
        ({"t1": "brain_mask.nii.gz", "mask": "T1WI.nii.gz"}, ("--t9", "x"), 2, "--t9"),
    ],
)
def test_wrong_words_end_with_a_sentence_and_no_file(place, synthesize, names, more, code, said):
    found, _, error = synthesize(*files(place, **names), *more)
    assert (found, maps(place)) == (code, [])
    assert said in " ".join(error.split())
    assert not (place / "synthetic").exists()


def test_a_folder_without_a_t1_is_4(place, synthesize):
    folder = place / "incoming" / "sub-0007" / "visit-1"
    (folder / "T1WI.nii.gz").unlink()
    code, _, error = synthesize("--folder", folder)
    assert code == 4
    assert "E210" in error


def test_a_model_file_that_is_none_is_3(place, synthesize):
    (place / "text.safetensors").write_text("no model")
    for model in ("missing.safetensors", "text.safetensors"):
        code, _, error = synthesize(*files(place, **T1_AND_MASK), model=model)
        assert code == 3
        assert model in "".join(error.split())


def test_a_model_that_needs_more_is_4_and_says_what(place, synthesize):
    model_file(
        place / "both.safetensors", Modality.T1WI, Modality.ADC, architecture="encoder-decoder"
    )
    code, _, error = synthesize(*files(place, **T1_AND_MASK), model="both.safetensors")
    assert code == 4
    assert "the model needs T1WI, ADC; usable are T1WI" in " ".join(error.split())
    assert maps(place) == []


def test_a_place_that_cannot_be_written_is_3(place, synthesize, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(synthetic, "atomic_write_bytes", refuse)
    code, _, error = synthesize(*files(place, **T1_AND_MASK), "--out", place / "locked")
    assert code == 3
    assert "Permission denied" in " ".join(error.split())
    assert list((place / "locked").rglob("*.*")) == []
