"""The commands' exit codes and sentences, as scripts and people depend on them."""

import json

import pytest

import client.cli
import server.cli
import simulation.cli
from iedn import console, progress
from sites.release_log import ReleaseLog

SITE = """
name = "site-x"
role = "evaluate"
manifest = "manifest.csv"
"""


@pytest.fixture
def site(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(SITE)
    return path


@pytest.mark.parametrize("main", [client.cli.main, server.cli.main, simulation.cli.main])
def test_help_is_0_and_a_wrong_option_is_2(call, main):
    assert call(main, "--help")[0] == 0
    assert call(main, "--no-such-option")[0] == 2


def test_missing_site_file_is_3_and_says_where_it_looked(call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, error = call(client.cli.main, "--site", "hospital-b", "check")
    assert code == 3
    assert "kits/hospital-b/site.toml" in error.replace("\n", "")
    assert "Traceback" not in error


def test_missing_manifest_is_4(call, site):
    code, _, error = call(client.cli.main, "--site", site, "check")
    assert code == 4
    assert "manifest.csv" in error.replace("\n", "")


def test_ssim_without_cbv_is_refused_with_7(call, site):
    asked = ("--site", site, "evaluate", "--model", "x.safetensors")
    for words in (("--against", "cbv"), ("--combinations", "paper")):
        code, _, error = call(client.cli.main, *asked, *words)
        assert code == 7
        assert "no measured CBV" in error


def test_missing_model_file_is_3(call, site):
    code, _, error = call(
        client.cli.main, "--site", site, "synthesize", "--model", "none.safetensors"
    )
    assert code == 3
    assert "none.safetensors" in error.replace("\n", "")


def test_releases_are_listed_and_a_changed_log_is_4(call, site):
    log = ReleaseLog(site.parent / "releases.jsonl")
    log.append({"kind": "train-reply", "bytes": 1_500_000})
    code, out, _ = call(client.cli.main, "--site", site, "releases")
    assert code == 0
    assert "1.5 MB" in out
    assert "chain whole" in out
    log.path.write_text(log.path.read_text().replace("1500000", "1"))
    assert call(client.cli.main, "--site", site, "releases")[0] == 4


def test_status_of_a_folder_that_is_no_run_is_3(call, tmp_path):
    assert call(server.cli.main, "status", tmp_path)[0] == 3


def test_unknown_scenario_is_3_and_scenarios_are_listed(call):
    code, _, error = call(simulation.cli.main, "run", "nothing")
    assert code == 3
    assert "demo" in error
    code, out, _ = call(simulation.cli.main, "scenarios", "--json")
    assert code == 0
    assert {"demo", "demo-long", "smoke"} <= set(json.loads(out))


def test_interrupt_is_130(call, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(simulation.cli, "load_scenario", interrupted)
    code, _, error = call(simulation.cli.main, "run", "demo")
    assert code == 130
    assert error.strip() == "interrupted"


def test_plain_progress_says_the_end_and_is_quiet_in_between(capsys):
    times = iter([0.0, 1.0, 6.0, 7.0, 8.0])
    end = progress.add_sink(console._PlainLines(clock=lambda: next(times)))
    for done in range(1, 6):
        progress.report("scans", done, 5)
    end()
    progress.report("scans", 1, 5)
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["scans: 3/5, 6 s left", "scans: 5/5"]


def test_json_progress_is_one_object_a_line(capsys):
    with console.showing_progress(as_json=True):
        progress.report("scans", 2, 5)
    assert json.loads(capsys.readouterr().err) == {"task": "scans", "done": 2, "total": 5}
