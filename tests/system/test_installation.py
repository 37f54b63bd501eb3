"""What users install: sdist and wheel of a clean copy, in an environment of their own.

The environment sees the packages that this one has, but for ours, so that nothing is downloaded.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv

import pytest

from tests.documents import ROOT

pytestmark = [pytest.mark.system]

COMMANDS = ("iedn-client", "iedn-server", "iedn-simulate")
PACKAGES = ("iedn", "sites", "client", "server", "simulation")
NEEDED = {
    "iedn": ["templates/page.html.j2", "py.typed"],
    "server": [
        "templates/federation.toml.j2",
        "templates/site.toml.j2",
        "templates/report.html.j2",
    ],
    "client": [
        "templates/site_report.html.j2",
        "rating/static/index.html",
        "rating/static/vendor/niivue.js",
        "rating/static/vendor/LICENSES.txt",
    ],
    "simulation": ["scenarios/smoke.toml", "scenarios/demo.toml"],
    "sites": ["examples/train.toml", "examples/evaluate.toml"],
}
LOOK = """
import importlib, importlib.resources, json, sys
needed = json.loads(sys.argv[1])
print(json.dumps({
    "folders": {name: importlib.import_module(name).__file__ for name in needed},
    "missing": [
        f"{name}/{file}" for name, files in needed.items() for file in files
        if not importlib.resources.files(name).joinpath(file).is_file()
    ],
}))
"""


def run(*words, **options):
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with sdist and wheel, the wheel made of the sdist."""
    copy = tmp_path_factory.mktemp("clean") / "copy"
    tracked = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, tracked):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    run(sys.executable, "-m", "build", "--no-isolation", cwd=copy)
    return copy / "dist"


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The folder with the installed commands."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False, symlinks=True)
    (own,) = (place / "lib").glob("python3*/site-packages")
    (own / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    (wheel,) = built.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--python", place / "bin" / "python")
    run(*pip, "install", "--no-deps", "--no-index", "--ignore-installed", wheel)
    return place / "bin"


@pytest.fixture
def outside(tmp_path):
    """Where the commands are called: nothing of the tree is near, nor named in the environment."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return {"cwd": tmp_path, "env": environment}


def test_sdist_holds_what_the_wheel_is_made_of_and_no_tests(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = [name.split("/", 1)[-1] for name in archive.getnames()]
    assert {"pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md"} <= set(names)
    assert {name.split("/")[0] for name in names if "/" in name} == set(PACKAGES)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_answers_from_anywhere(installed, outside, command):
    assert "Usage" in run(installed / command, "--help", **outside)


def test_packages_are_the_installed_ones_with_all_their_files(installed, outside):
    found = json.loads(run(installed / "python", "-c", LOOK, json.dumps(NEEDED), **outside))
    assert found["missing"] == []
    for name, file in found["folders"].items():
        assert file.startswith(str(installed.parent)), name


def test_commands_find_templates_and_scenarios(installed, outside):
    assert "smoke" in run(installed / "iedn-simulate", "scenarios", **outside)
    words = "init trial --sites a,b,c --host localhost --preset tiny"
    run(installed / "iedn-server", *words.split(), **outside)
    kit = outside["cwd"] / "trial" / "kits" / "a"
    assert (kit / "site.toml").is_file()
    (kit / "cohort").mkdir()
    run(installed / "iedn-client", "--site", kit, "init", **outside)
    assert (kit / "tls" / "site.pub").is_file()
