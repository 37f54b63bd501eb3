"""What is shipped: the wheel holds the packages and nothing else, the bundle holds no code."""

import hashlib
import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from client.rating.app import STATIC
from iedn.bundle import write_bundle

ROOT = Path(__file__).parents[2]
PACKAGES = {"iedn", "sites", "client", "server", "simulation"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel's file names, built from a checkout in which a careless user left things."""
    source = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                target = source / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    (source / "sites" / "hospital.toml").write_text('name = "hospital"')
    (source / "sites" / "hospital" / "cache").mkdir(parents=True)
    (source / "sites" / "hospital" / "cache" / "scan.safetensors").write_bytes(b"x")
    (source / "sites" / "hospital" / "releases.jsonl").write_text("{}")
    (source / "client" / "sub-0007_T1WI.nii.gz").write_bytes(b"x")
    (source / "tests").mkdir()
    (source / "tests" / "test_x.py").write_text("")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (built,) = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(built).namelist()


def test_wheel_holds_the_five_packages_and_metadata_only(wheel):
    roots = {name.split("/")[0] for name in wheel}
    assert {r for r in roots if not r.endswith(".dist-info")} == PACKAGES
    assert "sites/discovery/bids.py" in wheel, "a package inside sites/ is not a site's folder"


def test_wheel_holds_no_site_file_no_data_no_tests(wheel):
    allowed = re.compile(
        r"[a-z0-9_/]+\.py|[a-z]+/py\.typed|simulation/scenarios/[a-z-]+\.toml"
        r"|sites/examples/[a-z-]+\.toml"
        r"|(?:server|client|iedn)/templates/[a-z_.]+\.j2|iedn-[0-9.]+\.dist-info/.*"
        r"|client/rating/static/[a-z]+\.(html|css|js)"
        r"|client/rating/static/vendor/(niivue\.js|niivue\.json|LICENSES\.txt)"
    )
    assert [name for name in wheel if not allowed.fullmatch(name)] == []
    assert not [name for name in wheel if "hospital" in name or "test" in Path(name).name]


def test_wheel_holds_what_the_commands_need(wheel):
    for name in (
        "simulation/scenarios/demo.toml",
        "server/templates/report.html.j2",
        "client/templates/site_report.html.j2",
        "iedn/templates/page.html.j2",
    ):
        assert name in wheel
    for name in ("index.html", *STATIC):
        assert f"client/rating/static/{name}" in wheel
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


def test_vendored_viewer_is_the_pinned_one_with_its_licences():
    folder = ROOT / "client" / "rating" / "static" / "vendor"
    record = json.loads((folder / "niivue.json").read_text())
    assert hashlib.sha256((folder / "niivue.js").read_bytes()).hexdigest() == record["sha256"]
    script = (ROOT / "tools" / "vendor_niivue.py").read_text()
    assert record["sha256"] in script
    assert f'"{record["package"]}", "{record["version"]}"' in script
    licences = (folder / "LICENSES.txt").read_text()
    heads = re.findall(r"^=== (\S+) \S+ \((\S+)\) ===$", licences, re.MULTILINE)
    assert len(heads) == 10
    assert {kind for _, kind in heads} == {"BSD-2-Clause", "MIT", "ISC"}
    assert "Redistribution and use in source and binary forms" in licences


def test_bundle_is_a_manifest_without_code(tmp_path):
    folder = write_bundle(tmp_path / "iedn")
    (folder / "sites").mkdir()
    (folder / "sites" / "hospital.toml").write_text('name = "hospital"')
    (folder / "intruder.py").write_text("print('never runs')")
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(folder))) as bundle:
        names = set(bundle.namelist())
    assert {name for name in names if not name.startswith(".info")} == {"pyproject.toml", "LICENSE"}


def test_bundle_is_the_same_bytes_every_time(tmp_path):
    first, second = (build_fab_from_disk(write_bundle(tmp_path / n / "iedn")) for n in ("a", "b"))
    assert first == second


def test_checkout_itself_builds_the_same_kind_of_bundle():
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(ROOT))) as bundle:
        assert not [name for name in bundle.namelist() if name.endswith(".py")]
