"""``iedn-client rate`` as it is typed: the lines of the how-to, on a small site."""

import json
import re
import shlex
import socket
from datetime import UTC, datetime
from pathlib import Path

import nibabel
import numpy as np
import pytest

import client.cli
from client.rating.score_log import ScoreLog, Submission
from client.rating.study import load_study
from client.rating.worklist import worklist
from iedn.checkpoint import save_checkpoint
from iedn.config import GridConfig, NetworkConfig
from iedn.modalities import Modality
from iedn.model import build_network
from iedn.parameters import flatten, state_by_group

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "run-a-reader-study.md"
GRID = GridConfig(rows=32, columns=32, spacing_mm=6.875)
NETWORK = NetworkConfig(modalities=(Modality.T1WI, Modality.ASL), base_channels=4, depth=2)
HEADER = "patient_id,scan_id,T1WI,T2WI,FLAIR,ADC,T1_C,ASL,CBV,brain_mask,label,split,exclude_reason"
SHAPE, AFFINE = (26, 30, 6), np.diag([6.0, 6.0, 7.0, 1.0])
FIRST = datetime(2026, 3, 2, tzinfo=UTC)


def brain():
    x, y, z = np.indices(SHAPE)
    return ((x - 12.5) / 11) ** 2 + ((y - 14.5) / 13) ** 2 + ((z - 2.5) / 3) ** 2 < 1


def write_site(folder, role, *, lacking_asl=False):
    """Four patients, two of either outcome; the last two are held out."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)

    def save(name, values):
        nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), AFFINE), folder / name)
        return name

    mask = save("mask.nii.gz", brain())
    lines = [HEADER]
    for n in range(4):
        t1, asl, cbv = (
            save(f"{kind}-{n}.nii.gz", brain() * rng.uniform(50, 150, SHAPE))
            for kind in ("t1", "asl", "cbv")
        )
        label, split = ("recurrence", "train") if n < 2 else ("treatment_response", "test")
        asl = "" if lacking_asl and n == 3 else asl
        lines.append(f"sub-{n:04},ses-01,{t1},,,,,{asl},{cbv},{mask},{label},{split},")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    text = f'name = "{folder.name}"\nrole = "{role}"\nmanifest = "manifest.csv"\nworkers = 1\n'
    (folder / "site.toml").write_text(text)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with two sites' kits and a model, and it is the current one."""
    write_site(tmp_path / "kits" / "hospital-a", "train")
    write_site(tmp_path / "kits" / "external-b", "evaluate")
    tensors = flatten(state_by_group(build_network(NETWORK, seed=1)))
    path, grid = tmp_path / "best.safetensors", GRID.model_dump_json()
    save_checkpoint(path, tensors, NETWORK, metadata={"grid": grid, "round": "3"})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines():
    text = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL))
    return [shlex.split(line) for line in text.splitlines() if line]


def read_everything(folder, scores):
    """Both readers answer all tasks and finish."""
    study, log = load_study(folder), ScoreLog(folder)
    for name in ("reader-1", "reader-2"):
        found = worklist(study, log.record(), log.record().readers[name], FIRST)
        for task in found.tasks:
            log.append(Submission(name, task, scores, 9.0, FIRST), revision=0)
        log.close_session(name, "initial", 1, FIRST)


def test_the_how_to_word_for_word(place, call):
    """All but the line that serves, which is a browser test's."""
    done = {}
    serving = ["iedn-client", "--site", "hospital-a", "rate"]
    for program, *words in lines():
        if [program, *words] == serving:
            continue
        assert program == "iedn-client"
        if words[-1] == "export":
            criteria = ("distribution", "degree", "border")
            scores = {(m, c): 3 for m in ("real", "synthetic") for c in criteria}
            read_everything(place / "kits/hospital-a/readers/quality", scores)
        code, out, error = call(client.cli.main, *words)
        assert code == 0, error
        done[" ".join(words[1:])] = out
    assert serving in lines()
    study = load_study(place / "kits/hospital-a/readers/quality")
    assert [case.key for case in study.cases] == ["sub-0002/ses-01", "sub-0003/ses-01"]
    assert (study.design.seed, study.design.mode) == (11, "blind")
    assert sorted(study.cases[0].series) == ["CBV", "T1WI", "sCBV"]
    other = load_study(place / "kits/external-b/readers/diagnosis")
    assert (len(other.cases), other.design.washout_days) == (4, 28.0)
    assert sorted(other.cases[0].series) == ["ASL", "T1WI", "sCBV"]
    link = re.search(r"reader-1 \(reader\): (\S+)", done["hospital-a rate add-reader reader-1"])
    assert re.fullmatch(r"http://127\.0\.0\.1:8417/#[\w-]{22}", link[1])
    assert "reader-2 (reader): 0/2 initial, session 1" in done["hospital-a rate status"]
    assert (
        "| real | Overall perfusion degree of the lesions | 2 | 3.00 |"
        in (done["hospital-a rate export"])
    )


def test_maps_of_a_study_are_alike_but_for_what_they_show(place, call):
    words = ("rate", "init", "--model", "best.safetensors", "--split", "all", "--json")
    code, out, error = call(client.cli.main, "--site", "hospital-a", *words)
    assert code == 0, error
    folder = Path(json.loads(out)["folder"])
    study = load_study(folder)
    assert len(study.cases) == 4
    for case in study.cases:
        volumes = [nibabel.load(folder / "volumes" / case.series[n].file) for n in ("CBV", "sCBV")]
        headers = [bytes(v.header.binaryblock) for v in volumes]
        assert headers[0] == headers[1]
        real, made = (np.asarray(v.dataobj) for v in volumes)
        assert ((made > 0) & (real == 0)).sum() == 0, "cut at the same mask"
        assert real[real > 0].mean() == pytest.approx(1.0, rel=0.05), "brain mean 1"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("status",), 3, "rate init"),
        ((), 3, "rate init"),
        (("init", "--model", "none.safetensors"), 3, "none.safetensors"),
        (("init", "--model", "best.safetensors", "--study", "A B"), 3, "--study"),
        (("init", "--model", "best.safetensors", "--kind", "diagnosis", "--cases", "2"), 3, "--ca"),
        (("init", "--model", "best.safetensors", "--kind", "opinion"), 2, "opinion"),
        (("init", "--model", "best.safetensors", "--window-max", "0"), 2, "0.1"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(place, call, words, code, message):
    found, _, error = call(client.cli.main, "--site", "hospital-a", "rate", *words)
    assert (found, message in error.replace("\n", "")) == (code, True), error


def test_a_labelled_scan_without_asl_stops_a_diagnosis_study(place, call):
    write_site(place / "kits" / "hospital-c", "evaluate", lacking_asl=True)
    words = ("rate", "init", "--model", "best.safetensors", "--kind", "diagnosis")
    code, _, error = call(client.cli.main, "--site", "hospital-c", *words)
    assert code == 4
    assert "sub-0003/ses-01" in error.replace("\n", "")


def test_a_port_that_is_taken_is_said(place, call):
    init = ("rate", "init", "--model", "best.safetensors")
    assert call(client.cli.main, "--site", "hospital-a", *init)[0] == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, out, error = call(client.cli.main, "--site", "hospital-a", "rate", "--port", port)
    assert code == 3
    assert f"--port {port}" in error.replace("\n", " ")
    assert "page on" not in out


def test_the_wrong_export_says_what_is_to_be_done(place, call):
    init = ("rate", "init", "--model", "best.safetensors")
    call(client.cli.main, "--site", "hospital-a", *init)
    code, _, error = call(client.cli.main, "--site", "hospital-a", "rate", "export")
    assert code == 4
    assert "a first reader has not finished" in error.replace("\n", " ")
