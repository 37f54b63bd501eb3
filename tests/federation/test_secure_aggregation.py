"""Secure aggregation as a whole: the plain model bit for bit, and coordinators that cheat.

Whatever a coordinator tries, a site's update leaves once, under masks of the round's own sites, or
not at all; who refused, and why, is in the roster, and the run goes on or ends saying so.
"""

import itertools
import json

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from client.held_model import FILE as HELD
from client.session import forget_sessions, session_for
from client.training import answer_training
from iedn.errors import ConfigError, RefusedError
from iedn.masking import MaskRound, OwnMaskKey, members_of, signed_mask_key
from iedn.protocol.messages import FailureReply, TrainReply
from iedn.protocol.records import parse, parse_groups, to_record
from server.config import load_federation
from server.federation import QuorumError
from server.masked_rounds import SpentRoundError
from server.masked_sum import MaskedSum
from server.report import write_report
from server.run_folder import RunFolder
from server.status import facts_of
from sites.egress import Egress
from sites.release_log import verify
from tests.federation.masked import (
    SCANS,
    SITES,
    Wire,
    commits,
    events,
    federation,
    moved,
    play,
    run,
)

OWNED = {"decoder", "encoder.T1WI", "encoder.ASL"}


@pytest.fixture(autouse=True)
def played(monkeypatch):
    play(monkeypatch)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        play(patch)
        folder = federation(tmp_path_factory.mktemp("runs") / "plain", mode="off")
        return folder, run(folder)


def released(folder, site):
    entries = verify(folder / "sites" / site / "releases.jsonl")
    return [e for e in entries if e["kind"] == "train-reply"]


def statuses(commit):
    return {s: e.get("code", e["status"]) for s, e in commit["roster"].items()}


def reasons(commit, site):
    return commit["roster"][site]["reason"].split()[0]


def for_site(target, number, change):
    """A coordinator that tells one site something else in one round."""

    def tamper(site, request, groups):
        if (site, request.round) != (target, number):
            return request, groups
        return change(request), groups

    return tamper


def with_keys(request, keys):
    """The request with other mask keys, and numbers of sites that fit them."""
    counted = {group: len(members_of(keys, group)) for group in request.group_sites}
    return request.model_copy(update={"mask_keys": keys, "group_sites": counted})


def without(site):
    return lambda request: with_keys(
        request, {s: k for s, k in request.mask_keys.items() if s != site}
    )


def test_model_is_that_of_the_plain_run_bit_for_bit(tmp_path, plain_run):
    plain, _ = plain_run
    folder = federation(tmp_path / "run")
    run(folder)
    assert [c["model_hash"] for c in commits(folder).values()] == [
        c["model_hash"] for c in commits(plain).values()
    ]
    assert moved(folder, 1) == OWNED
    last = commits(folder)[2]
    assert last["void"] == {}
    assert last["contributions"] == commits(plain)[2]["contributions"]
    assert set(statuses(last).values()) == {"accepted"}


def test_quantised_and_held_models_go_with_masks(tmp_path):
    """The same bits with masks and without, though a site loses the model it held on its way."""
    outcomes = {}
    for mode in ("off", "on"):
        folder = federation(tmp_path / mode, mode=mode, transfer={"down": "int8"})
        held = folder / "sites" / "site-b" / HELD
        lost = []

        def tamper(site, request, groups, held=held, lost=lost):
            if (site, request.round) == ("site-b", 2) and not lost:
                lost.append(dict(groups))
                held.unlink()
            return request, groups

        run(folder, tamper)
        assert lost == [{}], "it was taken to hold the model"
        found = commits(folder)
        assert set(statuses(found[2]).values()) == {"accepted"}
        down = {site: entry["bytes_down"] for site, entry in found[2]["roster"].items()}
        assert down == {
            **dict.fromkeys(SITES, 0),
            "site-b": found[1]["roster"]["site-b"]["bytes_down"],
        }
        outcomes[mode] = [(c["model_hash"], c["state_hash"]) for c in found.values()]
    assert outcomes["on"] == outcomes["off"]
    assert outcomes["on"][-1][1] is not None, "what quantising has left over is in the commit"


def test_oversized_masked_reply_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    def padded(self, reply, tensors):
        leave(self, reply, tensors)
        tensors["decoder"]["decoder.padding"] = np.zeros(10**6, np.uint64)

    leave = Egress.masked_update
    monkeypatch.setattr(Egress, "masked_update", padded)
    folder = federation(tmp_path / "run", count=1, quorum=1)
    with pytest.raises(SpentRoundError):
        run(folder)
    assert set(statuses(commits(folder)[1]).values()) == {"wrong-size"}


def test_uploads_say_nothing_of_the_updates(tmp_path, plain_run):
    _, plain = plain_run
    masked = run(federation(tmp_path / "run"))
    for site in SITES:
        update = flat(plain.answered[site, 1]["decoder"])
        upload = flat(masked.answered[site, 1]["decoder"])
        assert upload.dtype == np.uint64
        assert correlation(upload, update) < 5 / np.sqrt(update.size)


def flat(tensors):
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


def correlation(upload, update):
    return abs(np.corrcoef(upload.view(np.int64).astype(np.float64), update)[0, 1])


def attackers_key(request, site):
    """A key in a site's name by somebody who does not hold the site's own key."""
    own = OwnMaskKey(site, X25519PrivateKey.generate(), MaskRound.of(request))
    groups = request.mask_keys[site].groups if site in request.mask_keys else ("decoder",)
    return signed_mask_key(own, groups, ec.generate_private_key(ec.SECP384R1()))


def swapped(request):
    keys = {**request.mask_keys, "site-b": attackers_key(request, "site-b")}
    return with_keys(request, keys)


def half_swapped(request):
    """The attacker's key under the site's own signature, of another key."""
    key = attackers_key(request, "site-b").key
    signed = request.mask_keys["site-b"].model_copy(update={"key": key})
    return with_keys(request, {**request.mask_keys, "site-b": signed})


def with_a_made_up_site(request):
    return with_keys(request, {**request.mask_keys, "site-z": attackers_key(request, "site-z")})


def with_one_key_twice(request):
    keys = {**request.mask_keys, "site-b": request.mask_keys["site-c"]}
    return with_keys(request, keys)


def with_more_groups(request):
    """Makes a group of two look like one of three."""
    groups = request.mask_keys["site-d"].groups
    more = request.mask_keys["site-d"].model_copy(update={"groups": (*groups, "encoder.ASL")})
    return with_keys(request, {**request.mask_keys, "site-d": more})


def with_higher_counts(request):
    return request.model_copy(
        update={"group_sites": {g: n + 1 for g, n in request.group_sites.items()}}
    )


def with_ones_own_key_swapped(request):
    keys = {**request.mask_keys, "site-a": attackers_key(request, "site-a")}
    return with_keys(request, keys)


def without_keys(request):
    return request.model_copy(update={"mask_keys": {}})


ATTACKS = {
    "man in the middle": (swapped, "mask-signature"),
    "key without its signature": (half_swapped, "mask-signature"),
    "site that nobody accepted": (with_a_made_up_site, "unknown-peer"),
    "one key for two sites": (with_one_key_twice, "mask-signature"),
    "member it did not sign for": (with_more_groups, "mask-signature"),
    "more members than keys": (with_higher_counts, "mask-roster"),
    "site's own key swapped": (with_ones_own_key_swapped, "mask-roster"),
    "site left out of its roster": (without("site-a"), "mask-roster"),
    "no keys": (without_keys, "mask-roster"),
}


@pytest.mark.parametrize(("change", "code"), ATTACKS.values(), ids=ATTACKS)
def test_site_refuses_keys_that_are_not_the_rounds(tmp_path, change, code):
    folder = federation(tmp_path / "run")
    run(folder, for_site("site-a", 1, change))
    first, second = commits(folder)[1], commits(folder)[2]
    assert statuses(first)["site-a"] == "failure"
    assert reasons(first, "site-a") == code
    assert released(folder, "site-a")[0]["message"]["round"] == 2, "nothing left in round 1"
    assert set(first["void"]) == OWNED
    assert moved(folder, 1) == set()
    assert second["void"] == {}
    assert moved(folder, 2) == OWNED
    assert events(folder)[-1]["event"] == "finished"


def test_replayed_key_of_an_earlier_round_is_refused(tmp_path):
    kept = {}

    def tamper(site, request, groups):
        kept.setdefault(request.round, request.mask_keys)
        if (site, request.round) == ("site-a", 2):
            keys = {**request.mask_keys, "site-b": kept[1]["site-b"]}
            request = with_keys(request, keys)
        return request, groups

    folder = federation(tmp_path / "run")
    run(folder, tamper)
    assert reasons(commits(folder)[2], "site-a") == "mask-signature"
    assert set(commits(folder)[2]["void"]) == OWNED


def test_different_rosters_for_different_sites_open_nothing(tmp_path, plain_run):
    """A member that is in for some and out for others: no sum of any uploads tells a thing."""
    _, plain = plain_run
    folder = federation(tmp_path / "run", count=1)
    shown = {"site-a": without("site-d"), "site-b": without("site-d")}

    def tamper(site, request, groups):
        return shown.get(site, lambda r: r)(request), groups

    with pytest.raises(SpentRoundError):
        run_and_keep(folder, tamper, uploads := {})
    assert statuses(commits(folder)[1])["site-a"] == "mask-roster"
    updates = {s: flat(plain.answered[s, 1]["decoder"]) for s in SITES}
    for number in range(1, len(SITES) + 1):
        for chosen in itertools.combinations(SITES, number):
            opened = sum(flat(uploads[s, 1]["decoder"]) for s in chosen)
            for update in updates.values():
                assert correlation(opened, update) < 5 / np.sqrt(update.size), chosen


def run_and_keep(folder, tamper, uploads):
    wire = Wire(folder)
    try:
        run(folder, tamper, grid=wire)
    finally:
        uploads.update(wire.answered)


def test_second_request_for_one_update_is_refused(tmp_path):
    """With a smaller roster: the difference of the two sums would be one site's update."""
    asked = {}

    def tamper(site, request, groups):
        asked[site, request.round] = (request, groups)
        return request, groups

    folder = federation(tmp_path / "run", count=1)
    run(folder, tamper)
    request, groups = asked["site-a", 1]
    wire = run_again(folder)
    first = released(folder, "site-a")
    for other in (without("site-c")(request), request.model_copy(update={"mask_keys": None})):
        answer = parse(wire.ask("site-a", other, groups), FailureReply)
        assert answer.code == "mask-spent"
    other_base = request.model_copy(update={"base_hash": "f" * 64})
    assert parse(wire.ask("site-a", other_base, groups), FailureReply).code == "mask-spent"
    assert released(folder, "site-a") == first
    again = wire.ask("site-a", request, groups)
    assert parse(again, TrainReply).mask_roster == first[0]["message"]["mask_roster"]
    assert released(folder, "site-a")[-1]["tensors"] == first[0]["tensors"], "the same bytes"
    (folder / "sites" / "site-a" / "kept-reply.safetensors").unlink()
    assert parse(wire.ask("site-a", request, groups), FailureReply).code == "mask-spent"
    wire.close()


def run_again(folder):
    """A grid of sites that were started anew: what they know, they know from their files."""
    wire = Wire(folder)
    wire.tamper = None
    return wire


POINTS = {
    "before it is kept": ("client.masked_training.keep_reply", False),
    "kept, not logged": ("sites.egress.Egress.masked_update", False),
    "logged, key not erased": ("client.mask_key_file.MaskKeyFile.erase_private", True),
}


@pytest.mark.parametrize(("point", "has_left"), POINTS.values(), ids=POINTS)
def test_site_killed_at_any_point_lets_one_update_leave(tmp_path, monkeypatch, point, has_left):
    asked = {}

    def keep_from_site_a(site, request, groups):
        asked.setdefault(site, (request, groups))
        return None if site == "site-a" else (request, groups)

    folder = federation(tmp_path / "run", count=1)
    run(folder, keep_from_site_a)
    site_file = folder / "sites" / "site-a" / "site.toml"
    request, groups = asked["site-a"]
    with monkeypatch.context() as patch:
        patch.setattr(point, killed_for_good)
        with pytest.raises(KeyboardInterrupt):
            answer_training(session_for(site_file), request, groups)
    forget_sessions()
    if has_left:
        with pytest.raises(RefusedError, match="mask-spent"):
            answer_training(session_for(site_file), without("site-c")(request), groups)
    _, first = answer_training(session_for(site_file), request, groups)
    _, again = answer_training(session_for(site_file), request, groups)
    assert flat(first["decoder"]).tobytes() == flat(again["decoder"]).tobytes()
    forget_sessions()
    assert len({entry["tensors"] for entry in released(folder, "site-a")}) == 1
    assert json.loads(site_file.with_name("mask-key.json").read_text())["private"] is None


def killed_for_good(*_, **__):
    raise KeyboardInterrupt


def test_group_below_a_sites_minimum_never_leaves(tmp_path):
    """Four sites are asked for at least; encoder.ASL has three."""
    folder = federation(tmp_path / "run", count=1, policies={"site-b": {"min_group_sites": 4}})
    run(folder)
    (left,) = released(folder, "site-b")
    assert set(left["message"]["weights"]) == {"decoder", "encoder.T1WI"}
    commit = commits(folder)[1]
    assert commit["void"] == {"encoder.ASL": "site-b: held back by its policy"}
    assert commit["contributions"]["encoder.ASL"] == {"sites": 0, "scans": 0}
    assert moved(folder, 1) == {"decoder", "encoder.T1WI"}
    config = load_federation(folder / "federation.toml")
    page = write_report(RunFolder(folder, config), config).read_text()
    assert "left as they were:\nencoder.ASL (site-b: held back by its policy)" in page
    assert facts_of(RunFolder(folder, config), config)["void"] == {1: commit["void"]}


def test_site_that_demands_masks_refuses_a_plain_request(tmp_path):
    demanding = {"site-a": {"require_secure_aggregation": True}}
    folder = federation(tmp_path / "run", mode="off", count=1, policies=demanding)
    run(folder)
    commit = commits(folder)[1]
    assert reasons(commit, "site-a") == "policy"
    assert released(folder, "site-a") == []
    assert statuses(commit)["site-b"] == "accepted"


def test_site_without_an_accepted_list_takes_no_part_and_is_named(tmp_path):
    folder = federation(tmp_path / "run", count=1)
    (folder / "sites" / "site-d" / "peers.json").unlink()
    run(folder)
    commit = commits(folder)[1]
    assert reasons(commit, "site-d") == "no-peers"
    assert commit["void"] == {}
    assert commit["contributions"]["decoder"] == {"sites": 3, "scans": 65}


def test_key_signed_by_another_key_than_the_admitted_one_is_refused_by_the_coordinator(tmp_path):
    folder = federation(tmp_path / "run", count=1)
    admitted = folder / "admitted"
    (admitted / "site-d.pub").write_bytes((admitted / "site-c.pub").read_bytes())
    run(folder)
    assert statuses(commits(folder)[1])["site-d"] == "mask-signature"
    assert commits(folder)[1]["void"] == {}


def test_member_that_drops_voids_its_groups_and_the_next_round_goes_without_it(tmp_path):
    dropped = []

    def tamper(site, request, groups):
        if site == "site-a" and request.round == 1 and not dropped:
            dropped.append(site)
            return None
        return request, groups

    folder = federation(tmp_path / "run", count=3)
    wire = Wire(folder)
    run(folder, tamper, grid=wire)
    first = commits(folder)[1]
    assert statuses(first)["site-a"] == "offline"
    assert first["void"] == dict.fromkeys(sorted(OWNED), "site-a: offline")
    assert moved(folder, 1) == set()
    assert moved(folder, 2) == {"decoder", "encoder.T1WI"}, "the three others alone"
    assert commits(folder)[2]["contributions"]["decoder"]["sites"] == 3
    held = "held back by its policy"
    assert commits(folder)[2]["void"] == {"encoder.ASL": f"site-b: {held}; site-c: {held}"}


def test_quorum_lost_after_keys_uses_the_round_up_and_the_next_start_goes_on(tmp_path):
    folder = federation(tmp_path / "run", quorum=4)

    def drop(site, request, groups):
        return None if site == "site-a" else (request, groups)

    with pytest.raises(SpentRoundError, match=r"3 of 4 needed sites.*with the next round"):
        run(folder, drop)
    assert events(folder)[-1]["event"] == "incomplete"
    assert commits(folder)[1]["void"] == dict.fromkeys(sorted(OWNED), "quorum")
    assert commits(folder)[1]["model_hash"] == commits(folder)[0]["model_hash"]
    run(folder)
    assert moved(folder, 2) == OWNED
    rounds = {n: [e["message"]["round"] for e in released(folder, n)] for n in SITES}
    assert rounds == {"site-a": [2], "site-b": [1, 2], "site-c": [1, 2], "site-d": [1, 2]}


def test_quorum_that_is_not_reached_with_keys_uses_nothing_up(tmp_path):
    folder = federation(tmp_path / "run", quorum=4)
    peers = folder / "sites" / "site-d" / "peers.json"
    content = peers.read_bytes()
    peers.unlink()
    with pytest.raises(QuorumError, match=r"3 of 4 needed.*Nothing was committed"):
        run(folder)
    assert set(commits(folder)) == {0}
    peers.write_bytes(content)
    run(folder)
    assert moved(folder, 1) == OWNED


def test_coordinator_killed_in_a_round_goes_on_with_the_same_masks(
    tmp_path, plain_run, monkeypatch
):
    plain, _ = plain_run
    folder = federation(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(MaskedSum, "open", killed)
        with pytest.raises(InterruptedError):
            run(folder)
    run(folder)
    assert commits(folder)[2]["model_hash"] == commits(plain)[2]["model_hash"]
    assert len([e for e in events(folder) if e["event"] == "mask-keys"]) == 2
    for site in SITES:
        first, repeated, _ = released(folder, site)
        assert repeated["repeat"] is True
        assert repeated["tensors"] == first["tensors"]


def killed(*_, **__):
    raise InterruptedError


def test_older_copy_of_the_coordinators_folder_gets_no_second_update(tmp_path):
    folder = federation(tmp_path / "run", count=3)
    run(folder)
    before = {site: released(folder, site) for site in SITES}
    history = folder / "history.jsonl"
    lines = history.read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if '"round": 1' in line and "commit" in line)
    keep = [line for line in lines[: first + 1] if "mask-keys" not in line]
    history.write_text("".join(keep))
    for number in (2, 3):
        with pytest.raises(SpentRoundError, match="mask-spent"):
            run(folder)
        assert commits(folder)[number]["model_hash"] == commits(folder)[1]["model_hash"]
    run(folder)
    assert {site: released(folder, site) for site in SITES} == before


def test_noise_from_a_member_voids_the_group_and_harms_nothing(tmp_path, monkeypatch):
    import client.masked_training as site_side

    real = site_side.masked

    def noise(deltas, weights, own, keys):
        tensors = real(deltas, weights, own, keys)
        if own.site == "site-d":
            for tensor in tensors["encoder.T1WI"].values():
                tensor += np.random.default_rng(1).integers(0, 2**63, tensor.shape, np.uint64)
        return tensors

    monkeypatch.setattr(site_side, "masked", noise)
    folder = federation(tmp_path / "run", count=1)
    run(folder)
    assert set(commits(folder)[1]["void"]) == {"encoder.T1WI"}
    assert moved(folder, 1) == {"decoder", "encoder.ASL"}


@pytest.mark.parametrize(
    ("aggregation", "message"),
    [({"method": "fedavg"}, "per-group"), ({"gate": {"norm_factor": 3.0}}, "norm_factor")],
)
def test_what_needs_single_updates_is_refused_in_the_configuration(tmp_path, aggregation, message):
    with pytest.raises(ConfigError, match=rf"federation\.toml.*{message}"):
        federation(tmp_path / "run", aggregation=aggregation)


def plain_instead_of_masked(fields, tensors):
    return fields, {
        g: {n: x.astype(np.float32) for n, x in group.items()} for g, group in tensors.items()
    }


def of_another_roster(fields, tensors):
    return {**fields, "mask_roster": "0" * 64}, tensors


def without_a_roster(fields, tensors):
    return {**fields, "mask_roster": None}, tensors


def without_a_tensor(fields, tensors):
    decoder = dict(list(tensors["decoder"].items())[1:])
    return fields, {**tensors, "decoder": decoder}


def of_another_weight(fields, tensors):
    return {**fields, "weights": {**fields["weights"], "decoder": 1000}}, tensors


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (plain_instead_of_masked, "wrong-dtype"),
        (of_another_roster, "mask-roster"),
        (without_a_roster, "mask-roster"),
        (without_a_tensor, "wrong-key"),
        (of_another_weight, "wrong-weight"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_coordinator_checks_the_form_of_what_it_cannot_read(tmp_path, change, code):
    class Changed(Wire):
        def pull_messages(self, message_ids):
            replies = super().pull_messages(message_ids)
            for reply in replies:
                site = self._names[reply.metadata.src_node_id]
                if reply.metadata.message_type == "train" and site == "site-d":
                    fields = json.loads(str(reply.content["message"]["json"]))
                    fields, tensors = change(fields, parse_groups(reply.content))
                    reply.__dict__["_content"] = to_record(TrainReply(**fields), tensors)
            return replies

    folder = federation(tmp_path / "run", count=1)
    run(folder, grid=Changed(folder))
    commit = commits(folder)[1]
    assert statuses(commit)["site-d"] == code
    assert set(commit["void"]) == {"decoder", "encoder.T1WI"}
    assert moved(folder, 1) == {"encoder.ASL"}
    assert commit["contributions"]["encoder.ASL"]["scans"] == sum(
        n for scans in SCANS.values() for m, n in scans.items() if m == "ASL"
    )
