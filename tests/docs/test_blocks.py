"""Every code block of the documents is run, read as what it is, or says why it is not."""

import ast
import csv
import json
import re
import shlex

import pytest
import tomli_w
import yaml

from iedn.modalities import Modality
from iedn.toml import load_toml
from server.config import FederationConfig
from simulation.scenario import load_scenario
from sites.asl_context import volume_types
from sites.cohort import OPTIONAL_COLUMNS, REQUIRED_COLUMNS
from sites.config import load_site_config
from tests.documents import PAGES, ROOT, blocks_of

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
EXAMPLE = ROOT / "sites" / "examples" / "train.toml"
FEDERATION = {
    "run": "trial",
    "seed": 1,
    "preset": "tiny",
    "rounds": {"count": 1, "quorum": 1},
    "sites": {"hospital-a": {}},
}


def marked(mark):
    return [pytest.param(b, id=b.place) for b in BLOCKS if b.mark == mark]


def merged(base, part):
    """Tables into tables, everything else in place of what was there."""
    both = {k: merged(base[k], part[k]) for k in base.keys() & part.keys() if is_table(part[k])}
    return {**base, **part, **both}


def is_table(value):
    return isinstance(value, dict)


def fragment(block, folder):
    path = folder / "fragment.toml"
    path.write_text(block.text, encoding="utf-8")
    return load_toml(path)


def check_site(block, folder):
    content = merged(load_toml(EXAMPLE), fragment(block, folder))
    (folder / "site.toml").write_text(tomli_w.dumps(content), encoding="utf-8")
    load_site_config(folder / "site.toml")


def check_federation(block, folder):
    FederationConfig.model_validate(merged(FEDERATION, fragment(block, folder)))


def check_scenario(block, folder):
    (folder / "scenario.toml").write_text(block.text, encoding="utf-8")
    load_scenario(str(folder / "scenario.toml"))


def check_json(block, folder):
    assert json.loads(block.text)


def check_labels(block, folder):
    rows = list(csv.DictReader(block.text.splitlines()))
    assert {row["label"] for row in rows} <= {"recurrence", "treatment_response"}
    assert all(row["patient_id"] and row["scan_id"] for row in rows)


def check_manifest(block, folder):
    rows = list(csv.DictReader(block.text.splitlines()))

    assert rows
    assert set(REQUIRED_COLUMNS) <= set(rows[0]) <= {*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS}
    assert None not in rows[0], "a cell too many"


def check_aslcontext(block, folder):
    path = folder / "sub-0007_aslcontext.tsv"
    path.write_text(block.text, encoding="utf-8")
    assert volume_types(folder / "sub-0007_asl.nii.gz")


def check_compose(block, folder):
    assert yaml.safe_load(block.text)


def check_unit(block, folder):
    """Lines for a systemd unit that the example has, or has as a comment."""
    example = (ROOT / "docs" / "operations" / "iedn-client@.service").read_text(encoding="utf-8")
    known = {line.lstrip("# ") for line in example.splitlines()}
    assert set(block.text.splitlines()) <= known


def check_folders(block, folder):
    """A tree of files; every image in it has a name that a column knows."""
    columns = {m.value for m in Modality} | {"CBV", "brain_mask", "lesion_mask"}
    images = re.findall(r"(\w+)\.nii\.gz", block.text)
    assert images
    assert set(images) <= columns


KINDS = {
    "site.toml": check_site,
    "federation.toml": check_federation,
    "scenario.toml": check_scenario,
    "labels.csv": check_labels,
    "manifest.csv": check_manifest,
    "aslcontext.tsv": check_aslcontext,
    "compose.yaml": check_compose,
    "folders": check_folders,
    "unit": check_unit,
    "json": check_json,
}


def test_every_block_is_classified():
    unknown = [block.place for block in BLOCKS if not block.mark]
    assert not unknown, f"no mark above the block (see tests/documents.py): {', '.join(unknown)}"


@pytest.mark.parametrize("block", marked("run"))
def test_what_is_said_to_be_run_is_asked_for_by_a_test(block):
    file, test = block.what.split("::")
    found = [
        node
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name == test
    ]
    assert len(found) == 1, f"{block.place}: no {block.what}"
    names = {argument.arg for argument in found[0].args.args}
    assert names & {"documented", "tutorial"}, f"{block.what} does not take the page's blocks"


def test_a_text_that_is_printed_stands_below_a_block_that_is_run():
    for page in PAGES:
        before = ""
        for block in blocks_of(page):
            assert block.mark != "printed" or before in ("run", "printed"), block.place
            before = block.mark


@pytest.mark.parametrize("block", marked("checked"))
def test_files_in_the_documents_are_accepted(block, tmp_path):
    KINDS[block.what](block, tmp_path)


@pytest.mark.parametrize("block", marked("apart"))
def test_what_is_not_run_says_why(block):
    assert len(block.what.split()) >= 3, f"{block.place}: {block.what!r} is no reason"


def scripts():
    for block in BLOCKS:
        for line in block.text.replace("\\\n", " ").splitlines():
            if found := re.search(r"\bpython (benchmarks/\w+\.py|tools/\w+\.py)(.*)", line):
                yield pytest.param(found[1], found[2], id=f"{block.place} {found[1]}")


@pytest.mark.parametrize(("script", "rest"), list(scripts()))
def test_scripts_in_the_documents_have_these_options(script, rest):
    source = (ROOT / script).read_text(encoding="utf-8")
    for word in shlex.split(rest, comments=True):
        if word.startswith("--"):
            assert f'"{word}"' in source, f"{word} is not an option of {script}"


def test_a_wrong_value_in_a_block_is_found(tmp_path):
    """The checks above can fail."""
    block = next(b for b in BLOCKS if b.what == "site.toml" and "formal" in b.text)
    broken = type(block)(**{**vars(block), "text": block.text.replace("formal", "formel")})
    with pytest.raises(Exception, match="formel"):
        check_site(broken, tmp_path)
