"""Secure aggregation in a deployment: processes killed around the one masked update of a round.

Every site demands masks. Whoever is killed where, started again with the same command: the model is
that of one process, no site has masked an update twice, and no private mask key is left.
"""

import json
import signal
import tomllib

import pytest
import tomli_w

from sites.release_log import verify
from tests.deployment import TRAINERS
from tests.system.doomed import MASKED_SERVER, MASKED_SITE
from tests.system.scenarios import trainers_only
from tests.system.ward import SERVER_NAME, Ward

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("masked-kills")]

ROUNDS = 2
PATIENCE_S = 900.0
CELLS = ["undisturbed", *MASKED_SERVER, *MASKED_SITE]


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    content = trainers_only(rounds=ROUNDS) | {"secure_aggregation": "on"}
    made = Ward(tmp_path_factory.mktemp("ward"), content, CELLS)
    for site in made.sites:
        path = made.kit(site) / "site.toml"
        own = tomllib.loads(path.read_text(encoding="utf-8"))
        own["policy"]["require_secure_aggregation"] = True
        path.write_text(tomli_w.dumps(own), encoding="utf-8")
    try:
        yield made
    finally:
        made.stop_all()


def left(ward, site):
    """Hashes of the updates of this run that left a site, by round."""
    found = {}
    for entry in verify(ward.kit(site) / "releases.jsonl"):
        if entry["kind"] == "train-reply" and entry["message"]["run"] == ward.run_name():
            assert entry["message"]["mask_roster"], "an update left without masks"
            found.setdefault(entry["message"]["round"], set()).add(entry["tensors"])
    return found


def check_outcome(ward):
    assert ward.wait_for_end(SERVER_NAME, PATIENCE_S) == 0, ward.log(SERVER_NAME)[-3000:]
    assert ward.model_hash() == ward.reference
    assert ward.rounds() == [(0, []), *((n, list(TRAINERS)) for n in range(1, ROUNDS + 1))]
    for site in ward.sites:
        assert {n: len(hashes) for n, hashes in left(ward, site).items()} == {1: 1, 2: 1}
        stored = json.loads((ward.kit(site) / "mask-key.json").read_text())
        assert stored["private"] is None


def wait_for_kill(ward, name):
    assert ward.wait_for_end(name, PATIENCE_S) == -signal.SIGKILL, ward.log(name)[-3000:]
    ward.start_again(name)


def test_undisturbed(ward):
    ward.begin("undisturbed")
    ward.start_server()
    check_outcome(ward)


@pytest.mark.parametrize("point", MASKED_SERVER)
def test_coordinator_is_killed(ward, point):
    ward.begin(point)
    ward.doom(SERVER_NAME, point)
    wait_for_kill(ward, SERVER_NAME)
    check_outcome(ward)


@pytest.mark.parametrize("point", MASKED_SITE)
def test_site_is_killed(ward, point):
    ward.begin(point, "site-a")
    ward.doom("site-a", point)
    ward.start_server()
    wait_for_kill(ward, "site-a")
    check_outcome(ward)
