"""The examples for operators: units that are hardened, commands that exist, files that parse."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from typer.main import get_command

import client.cli
import server.cli

FOLDER = Path(__file__).parents[2] / "docs" / "operations"
UNITS = sorted(FOLDER.glob("*.service"))
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


def test_image_has_every_package_and_no_root():
    text = (FOLDER / "Dockerfile").read_text()
    copied = set(re.findall(r"^COPY ([a-z]+) \1$", text, re.MULTILINE))
    assert copied == {"iedn", "sites", "client", "server", "simulation"}
    assert re.search(r"^USER (?!root|0\b)", text, re.MULTILINE)
