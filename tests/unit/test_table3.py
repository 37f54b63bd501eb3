"""What `evaluate` and `table3` do from NIfTI files on, by the commands a person types."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

import client.cli
import simulation.cli
from client.session import SiteSession
from iedn.checkpoint import save_checkpoint
from iedn.config import GridConfig, NetworkConfig
from iedn.evaluation.statistics import delong_test
from iedn.modalities import Modality
from iedn.model import build_network
from iedn.parameters import flatten, state_by_group
from iedn.protocol.messages import EvaluateRequest
from sites.config import load_site_config
from sites.release_log import verify

GRID = GridConfig(rows=32, columns=32, spacing_mm=6.875)
NETWORK = NetworkConfig(modalities=(Modality.T1WI, Modality.ASL), base_channels=4, depth=2)
HEADER = (
    "patient_id,scan_id,T1WI,T2WI,FLAIR,ADC,T1_C,ASL,CBV,brain_mask,"
    "label,split,exclude_reason,lesion_mask"
)
SHAPE, AFFINE = (26, 30, 4), np.diag([6.0, 6.0, 7.0, 1.0])
LABELS = ("recurrence", "treatment_response")


def save(path: Path, values: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), AFFINE), path)


def write_site(folder: Path, *, patients: int, seed: int, policy: str = "") -> Path:
    """Patients in turn with either outcome; ASL of recurrences is brighter in the lesion."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    x, y, z = np.indices(SHAPE)
    brain = ((x - 12.5) / 11) ** 2 + ((y - 14.5) / 13) ** 2 + ((z - 1.5) / 2.6) ** 2 < 1
    lesion = (np.abs(x - 6) < 3) & (np.abs(y - 14) < 3) & (z == 2)
    save(folder / "mask.nii.gz", brain)
    save(folder / "lesion.nii.gz", lesion)
    lines = [HEADER]
    for number in range(patients):
        hot = 1 + lesion * (1.0 * (number % 2) + rng.normal(0.5, 0.6))
        save(folder / f"t1-{number}.nii.gz", brain * rng.uniform(50, 150, SHAPE))
        save(folder / f"asl-{number}.nii.gz", brain * rng.uniform(30, 60, SHAPE) * np.abs(hot))
        lines.append(
            f"sub-{number:04d},ses-01,t1-{number}.nii.gz,,,,,asl-{number}.nii.gz,,mask.nii.gz,"
            f"{LABELS[1 - number % 2]},,,lesion.nii.gz"
        )
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    (folder / "site.toml").write_text(
        f'name = "{folder.name}"\nrole = "evaluate"\nmanifest = "manifest.csv"\n[policy]\n'
        f'releases = ["diagnostic"]\n{policy}'
    )
    return folder / "site.toml"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "best.safetensors"
    tensors = flatten(state_by_group(build_network(NETWORK, seed=1)))
    save_checkpoint(path, tensors, NETWORK, metadata={"grid": GRID.model_dump_json(), "round": "3"})
    return path


@pytest.fixture(scope="module")
def hospital(tmp_path_factory) -> Path:
    return write_site(tmp_path_factory.mktemp("h") / "hospital", patients=24, seed=1)


def test_two_phantom_sites_give_the_table_of_the_joined_strata(call, model, tmp_path):
    sites = {n: write_site(tmp_path / n, patients=14, seed=s) for n, s in (("a", 1), ("b", 2))}
    scenario = tmp_path / "two.toml"
    text = 'name = "two"\npreset = "tiny"\n[rounds]\ncount = 1\nquorum = 1\n'
    for name in sites:
        text += f'[sites.{name}]\nrole = "evaluate"\nmanifest = "{name}/manifest.csv"\n'
    text += '[sites.trainer]\nmanifest = "nowhere/manifest.csv"\n'  # is not looked at
    scenario.write_text(text)
    out, results = tmp_path / "run", tmp_path / "results"
    code, printed, error = call(
        simulation.cli.main, "table3", "--preset", scenario, "--model", model, "--out", out,
        "--results", results, "--workers", 1, "--json",
    )  # fmt: skip
    assert code == 0, error
    table = json.loads(printed)
    assert "PHANTOM" in table["notice"].upper()
    roi = table["stratified"]["roi"]
    assert (roi["num_recurrence"], roi["num_treatment_response"]) == (14, 14)
    sent = [table["sites"][name]["sent"]["roi"] for name in sites]
    # Equal numbers of pairs: a site counts one half.
    difference = np.mean([s["area_a"] - s["area_b"] for s in sent])
    variance = sum(s["variance_a"] + s["variance_b"] - 2 * s["covariance"] for s in sent) / 4
    assert roi["difference"] == pytest.approx(difference, abs=1e-12)
    assert roi["statistic"] == pytest.approx(difference / np.sqrt(variance), abs=1e-10)
    for name in sites:
        (entry,) = verify(out / "sites" / name / "releases.jsonl")
        assert entry["message"]["paired_areas"] == table["sites"][name]["sent"]
    page = (results / "table3-two.md").read_text()
    assert "All sites, stratified" in page
    assert "sub-" not in page + (results / "table3-two.json").read_text()


def test_a_site_sees_what_would_leave_and_nothing_leaves_before_it_approves(call, hospital, model):
    words = ("--site", hospital, "evaluate", "--model", model)
    code, printed, error = call(client.cli.main, *words)
    assert code == 0, error
    assert "24 scans of 24 patients" in printed
    assert "Nothing has left. These numbers would leave" in printed
    assert (hospital.parent / "table3.md").exists()
    assert len(list((hospital.parent / "synthetic").glob("*/*.nii.gz"))) == 24
    assert not (hospital.parent / "releases.jsonl").exists()

    code, printed, _ = call(client.cli.main, *words, "--approve", "--json")
    assert code == 0
    shown = json.loads(printed)
    assert shown["approved"]
    assert not (hospital.parent / "releases.jsonl").exists()
    roi = shown["would_leave"]["roi"]
    assert (roi["num_positive"], roi["num_negative"]) == (12, 12)
    values = np.genfromtxt(
        hospital.parent / "synthetic" / "roi_values.csv", delimiter=",", names=True, dtype=None,
        encoding="utf-8",
    )  # fmt: skip
    expected = delong_test(
        values["label"] == "recurrence", values["synthetic_cbv_ratio"], values["asl_ratio"]
    )
    assert roi["area_a"] - roi["area_b"] == pytest.approx(expected.difference, abs=1e-9)


def test_ssim_is_refused_and_the_coordinators_question_too(call, hospital, model):
    words = ("--site", hospital, "evaluate", "--model", model)
    assert call(client.cli.main, *words, "--against", "cbv")[0] == 7
    assert call(client.cli.main, *words, "--combinations", "paper")[0] == 7


@pytest.mark.parametrize(
    ("patients", "edit", "code", "message"),
    [
        (6, None, 7, "6 patients: 3 with recurrence"),
        (24, (",treatment_response,", ",recurrence,"), 4, "0 with treatment_response"),
        (24, (",recurrence,", ",recurence,"), 4, "'recurence'"),
    ],
)
def test_a_wrong_cohort_stops_and_nothing_is_written(
    call, model, tmp_path, patients, edit, code, message
):
    site = write_site(tmp_path / "wrong", patients=patients, seed=3)
    manifest = site.parent / "manifest.csv"
    if edit is not None:
        manifest.write_text(manifest.read_text().replace(*edit))
    found, _, error = call(client.cli.main, "--site", site, "evaluate", "--model", model)
    assert found == code
    assert message in error
    assert not (site.parent / "synthetic").exists()
    assert not (site.parent / "table3.md").exists()


def test_the_page_of_an_evaluating_site_shows_curves_and_stays_for_its_owner(call, hospital, model):
    words = ("--site", hospital, "report", "--model", model, "--examples", 1)
    code, printed, error = call(client.cli.main, *words)
    assert code == 0, error
    path = hospital.parent / "report.html"
    assert printed.strip() == str(path)
    assert path.stat().st_mode & 0o077 == 0
    page = path.read_text()
    assert "ROC curves" in page
    assert "<b>12</b> recurrence (12 patients)" in page
    assert page.count("data:image/png") == 1
    assert "http" not in page.replace("http-equiv", "")


def test_no_page_of_six_patients(call, model, tmp_path):
    site = write_site(tmp_path / "six", patients=6, seed=3)
    code, _, error = call(client.cli.main, "--site", site, "report", "--model", model)
    assert code == 7
    assert "6 patients: 3 with recurrence" in error
    assert not (site.parent / "report.html").exists()
    assert not (site.parent / "synthetic").exists()


def test_a_wrong_reader_study_stops_before_the_first_map(call, model, tmp_path):
    site = write_site(tmp_path / "readers", patients=24, seed=3)
    (site.parent / "readers.csv").write_text(
        "case,reader,scenario,score_or_call,probability,time,stage\n"
        "sub-0000,reader-1,MRI+ASL,7,,30,initial\n"
    )
    code, _, error = call(client.cli.main, "--site", site, "evaluate", "--model", model)
    assert code == 4
    assert "'7'" in error
    assert not (site.parent / "synthetic").exists()


def test_a_copied_scan_stops(call, model, tmp_path):
    site = write_site(tmp_path / "copies", patients=24, seed=3)
    folder = site.parent
    for kind in ("t1", "asl"):
        (folder / f"{kind}-5.nii.gz").write_bytes((folder / f"{kind}-4.nii.gz").read_bytes())
    code, _, error = call(client.cli.main, "--site", site, "evaluate", "--model", model)
    assert code == 4
    assert "E301" in error
    assert not (folder / "synthetic").exists()


def test_metrics_asked_of_an_evaluating_site_are_a_policy_refusal(hospital):
    from client.evaluation import answer_metrics
    from iedn.errors import PolicyError

    request = EvaluateRequest(
        run="r", round=1, base_hash="0" * 64, grid=GRID, network=NETWORK, split="test",
        evaluation="metrics",
    )  # fmt: skip
    with pytest.raises(PolicyError, match="no measured CBV"):
        answer_metrics(SiteSession(load_site_config(hospital)), request, {})


def write_training_site(folder: Path) -> Path:
    """A patient to train on and three held-out scans, one of them without ASL."""
    write_site(folder, patients=4, seed=5)
    rng = np.random.default_rng(6)
    lines = (folder / "manifest.csv").read_text().splitlines()
    for number in range(4):
        mask = nibabel.load(folder / "mask.nii.gz").get_fdata()
        save(folder / f"cbv-{number}.nii.gz", mask * rng.uniform(1, 5, SHAPE))
        cells = lines[1 + number].split(",")
        cells[8], cells[11] = f"cbv-{number}.nii.gz", "train" if number == 0 else "test"
        cells[7] = "" if number == 3 else cells[7]
        lines[1 + number] = ",".join(cells)
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    (folder / "site.toml").write_text('name = "t"\nmanifest = "manifest.csv"\n')
    return folder / "site.toml"


def test_a_training_site_compares_combinations_and_goes_on(call, model, tmp_path):
    site = write_training_site(tmp_path / "training")
    baselines = tmp_path / "models"
    baselines.mkdir()
    for modalities in ((Modality.ASL,), (Modality.T1WI, Modality.ASL)):
        changes = {"architecture": "encoder-decoder", "modalities": modalities}
        config = NETWORK.model_copy(update=changes)
        tensors = flatten(state_by_group(build_network(config, seed=2)))
        metadata = {"grid": GRID.model_dump_json(), "round": "0"}
        path = baselines / f"encoder-decoder--{'+'.join(modalities)}.safetensors"
        save_checkpoint(path, tensors, config, metadata=metadata)
    words = ("--site", site, "evaluate", "--model", model, "--combinations", "ASL,T1WI+ASL")
    code, printed, error = call(client.cli.main, *words, "--baselines", baselines)
    assert code == 0, error
    assert printed.count("| T1WI+ASL |") == 3  # SSIM, PSNR, lesion
    assert "| 2 (2) |" in printed  # the scan without ASL is in no row
    units = sorted((site.parent / "combinations").iterdir())
    assert len(units) == 4
    before = [unit.stat().st_mtime_ns for unit in units]
    assert call(client.cli.main, *words, "--baselines", baselines)[1] == printed
    assert [unit.stat().st_mtime_ns for unit in units] == before
    assert not (site.parent / "releases.jsonl").exists()

    code, _, error = call(client.cli.main, *words[:-1], "T1WI", "--baselines", baselines)
    assert code == 3
    assert "no encoder-decoder of the model's grid for T1WI" in error.replace("\n", " ")
    code, _, error = call(client.cli.main, *words[:-1], "paper")
    assert code == 3
    assert "does not know ADC" in error
