"""Pairwise masks: they cancel to the last bit, hide what they cover, and bind round and roster."""

import hashlib
import hmac
import json
import struct

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from iedn.errors import RefusedError
from iedn.fixed_point import quantise
from iedn.masking import (
    MaskRound,
    OwnMaskKey,
    check_mask_key,
    masked,
    members_of,
    roster_digest,
    signed_mask_key,
)
from iedn.protocol.messages import MaskKey
from server.aggregation import StreamingSum, Update
from server.masked_sum import MaskedSum

ROUND = MaskRound("run-1", 3, "c" * 64)
SITES = ("site-a", "site-b", "site-c", "site-d")
OWNED = dict.fromkeys(SITES, ("decoder", "encoder.T1WI")) | {"site-a": ("decoder", "encoder.ASL")}
WEIGHTS = {"site-a": 5, "site-b": 20, "site-c": 1, "site-d": 735}
SIZE = 4096


def identity(site, sites=SITES):
    return ec.derive_private_key(sites.index(site) + 1, ec.SECP384R1())


def own_keys(round_=ROUND, owned=OWNED):
    return {
        s: OwnMaskKey(s, X25519PrivateKey.from_private_bytes(bytes([i + 1]) * 32), round_)
        for i, s in enumerate(owned)
    }


def roster(own, owned=OWNED):
    return {s: signed_mask_key(own[s], owned[s], identity(s)) for s in own}


def deltas(site):
    generator = np.random.default_rng(SITES.index(site))
    return {
        group: {
            f"{group}.w": generator.normal(0, 1e-3, (SIZE // 4, 4)).astype(np.float32),
            f"{group}.b": generator.normal(0, 1e-3, 3).astype(np.float32),
        }
        for group in OWNED[site]
    }


def shapes(groups=("decoder", "encoder.T1WI", "encoder.ASL")):
    return {g: {f"{g}.w": (SIZE // 4, 4), f"{g}.b": (3,)} for g in groups}


def uploads(own, keys):
    weights = {s: dict.fromkeys(OWNED[s], WEIGHTS[s]) for s in own}
    return {s: masked(deltas(s), weights[s], own[s], keys) for s in own}


def summed(sent, keys, sites=SITES):
    total = MaskedSum(shapes(), {g: members_of(keys, g) for g in shapes()})
    for site in sites:
        total.add(site, sent[site], dict.fromkeys(OWNED[site], WEIGHTS[site]))
    return total


def correlation(masked_tensor, delta):
    """Of the upload, read as fixed point as an eavesdropper would, with the update."""
    seen = masked_tensor.view(np.int64).ravel().astype(np.float64)
    return float(np.corrcoef(seen, delta.ravel())[0, 1])


def test_opened_means_are_the_plain_ones_bit_for_bit():
    own = own_keys()
    keys = roster(own)
    plain = StreamingSum(shapes())
    for site in SITES:
        plain.add(Update(deltas(site), dict.fromkeys(OWNED[site], WEIGHTS[site])))
    means, refused = summed(uploads(own, keys), keys).open(1000.0)
    assert refused == {}
    expected = plain.mean_deltas()
    assert set(means) == set(expected)
    for group, tensors in expected.items():
        for name, mean in tensors.items():
            assert means[group][name].tobytes() == mean.tobytes(), (group, name)


def test_order_of_uploads_does_not_matter():
    own = own_keys()
    keys = roster(own)
    sent = uploads(own, keys)
    first, _ = summed(sent, keys).open(1000.0)
    second, _ = summed(sent, keys, SITES[::-1]).open(1000.0)
    assert first["decoder"]["decoder.w"].tobytes() == second["decoder"]["decoder.w"].tobytes()


def test_upload_is_not_correlated_with_the_update():
    owned = dict.fromkeys(("site-a", "site-b", "site-c"), ("decoder",))
    own = own_keys(owned=owned)
    keys = roster(own, owned)
    delta = np.random.default_rng(7).normal(0, 1e-3, 10**6).astype(np.float32)
    for site in own:
        (upload,) = masked({"decoder": {"w": delta}}, {"decoder": 20}, own[site], keys).values()
        assert abs(correlation(upload["w"], delta)) < 0.01
        assert abs(np.mean(upload["w"] >> np.uint64(63)) - 0.5) < 0.01, "the sign is a coin"


def test_sum_without_one_site_is_noise():
    """Two of three together do not open the third's: r of a partial sum with any update."""
    owned = dict.fromkeys(("site-a", "site-b", "site-c"), ("decoder",))
    own = own_keys(owned=owned)
    keys = roster(own, owned)
    generator = np.random.default_rng(8)
    plain = {s: generator.normal(0, 1e-3, 10**6).astype(np.float32) for s in own}
    sent = {
        s: masked({"decoder": {"w": plain[s]}}, {"decoder": 1}, own[s], keys)["decoder"]["w"]
        for s in own
    }
    partial = sent["site-a"] + sent["site-b"]
    for site in own:
        assert abs(correlation(partial, plain[site])) < 0.01
    np.testing.assert_array_equal(
        (partial + sent["site-c"]).view(np.int64), sum(quantise(x) for x in plain.values())
    )


def test_sole_member_of_a_group_has_no_mask():
    """Nothing hides a single site's sum; that is why the site's policy holds small groups back."""
    own = own_keys()
    sent = uploads(own, roster(own))
    expected = quantise(deltas("site-a")["encoder.ASL"]["encoder.ASL.w"]) * 5
    upload = sent["site-a"]["encoder.ASL"]["encoder.ASL.w"]
    np.testing.assert_array_equal(upload.view(np.int64), expected)


def test_group_that_misses_a_member_is_not_opened():
    own = own_keys()
    keys = roster(own)
    total = summed(uploads(own, keys), keys, SITES[:3])
    assert total.missing() == {"decoder": ("site-d",), "encoder.T1WI": ("site-d",)}
    means, _ = total.open(1000.0)
    assert set(means) == {"encoder.ASL"}


@pytest.mark.parametrize(
    "other", [MaskRound("run-2", 3, "c" * 64), MaskRound("run-1", 4, "c" * 64)]
)
def test_another_rounds_masks_do_not_cancel_with_this_ones(other):
    own, foreign = own_keys(), own_keys(other)
    keys = roster(own)
    sent = uploads(own, keys)
    sent["site-b"] = masked(
        deltas("site-b"), dict.fromkeys(OWNED["site-b"], 20), foreign["site-b"], keys
    )
    means, refused = summed(sent, keys).open(1000.0)
    assert set(means) == {"encoder.ASL"}
    assert set(refused) == {"decoder", "encoder.T1WI"}


def test_sites_that_were_shown_different_rosters_make_noise():
    own = own_keys()
    keys = roster(own)
    sent = uploads(own, keys)
    smaller = {s: k for s, k in keys.items() if s != "site-d"}
    sent["site-b"] = masked(
        deltas("site-b"), dict.fromkeys(OWNED["site-b"], 20), own["site-b"], smaller
    )
    _, refused = summed(sent, keys).open(1000.0)
    assert set(refused) == {"decoder", "encoder.T1WI"}
    opened = sum(sent[s]["decoder"]["decoder.w"] for s in SITES)
    for site in SITES:
        assert abs(correlation(opened, deltas(site)["decoder"]["decoder.w"])) < 0.06  # 4 sigma


def test_opened_mean_with_a_large_norm_is_refused():
    own = own_keys()
    keys = roster(own)
    means, refused = summed(uploads(own, keys), keys).open(1e-4)
    assert means == {}
    assert "norm" in refused["decoder"]


def test_group_a_site_did_not_sign_for_is_never_sent():
    own = own_keys()
    with pytest.raises(RefusedError, match=r"has not signed for encoder\.ASL"):
        masked({"encoder.ASL": {}}, {"encoder.ASL": 5}, own["site-b"], roster(own))


def test_key_of_small_order_is_refused():
    own = own_keys()
    keys = roster(own)
    keys["site-b"] = keys["site-b"].model_copy(update={"key": "00" * 32})
    with pytest.raises(RefusedError, match="gives no secret"):
        uploads({"site-a": own["site-a"]}, keys)


def test_total_weight_beyond_the_exact_range_is_refused():
    total = MaskedSum({"decoder": {"w": (1,)}}, {"decoder": ("site-a", "site-b")})
    one = {"decoder": {"w": np.zeros(1, np.uint64)}}
    total.add("site-a", one, {"decoder": 2**20})
    with pytest.raises(RefusedError, match="wrong-weight"):
        total.add("site-b", one, {"decoder": 1})


def test_signature_binds_run_round_model_site_key_and_groups():
    own = own_keys()["site-a"]
    key = signed_mask_key(own, ("decoder",), identity("site-a"))
    public = identity("site-a").public_key()
    check_mask_key(key, public, ROUND, "site-a")
    other = roster(own_keys())["site-b"].key
    forged = [
        (key, public, MaskRound("run-2", 3, "c" * 64), "site-a"),
        (key, public, MaskRound("run-1", 2, "c" * 64), "site-a"),
        (key, public, MaskRound("run-1", 3, "d" * 64), "site-a"),
        (key, public, ROUND, "site-b"),
        (key, identity("site-b").public_key(), ROUND, "site-a"),
        (key.model_copy(update={"key": other}), public, ROUND, "site-a"),
        (key.model_copy(update={"groups": ("decoder", "encoder.ASL")}), public, ROUND, "site-a"),
        (key.model_copy(update={"signature": "30"}), public, ROUND, "site-a"),
    ]
    for attempt in forged:
        with pytest.raises(RefusedError, match="mask-signature"):
            check_mask_key(*attempt)


def test_digest_of_a_roster_tells_all_rosters_apart():
    own = own_keys()
    keys = roster(own)
    other_groups = {**keys, "site-a": keys["site-b"].model_copy(update={"groups": ("decoder",)})}
    rosters = [keys, {s: keys[s] for s in SITES[:3]}, other_groups]
    digests = {roster_digest(ROUND, r) for r in rosters}
    digests.add(roster_digest(MaskRound("run-1", 4, "c" * 64), keys))
    assert len(digests) == 4
    assert roster_digest(ROUND, dict(reversed(keys.items()))) in digests, "order says nothing"


def chacha20(key, count):
    """RFC 8439, written down again: ``count`` blocks with a nonce of zeros."""

    def quarter(state, a, b, c, d):
        for x, y, z, shift in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) & 0xFFFFFFFF
            turned = state[z] ^ state[x]
            state[z] = ((turned << shift) | (turned >> (32 - shift))) & 0xFFFFFFFF

    stream = b""
    for number in range(count):
        start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), number]
        start += [0, 0, 0]
        state = list(start)
        for _ in range(10):
            for i in range(4):
                quarter(state, i, i + 4, i + 8, i + 12)
            for i in range(4):
                quarter(state, i, (i + 1) % 4 + 4, (i + 2) % 4 + 8, (i + 3) % 4 + 12)
        stream += struct.pack(
            "<16I", *((x + y) & 0xFFFFFFFF for x, y in zip(state, start, strict=True))
        )
    return stream


def hkdf(secret, salt, info):
    """RFC 5869 for one block of SHA-256."""
    extracted = hmac.digest(salt, secret, hashlib.sha256)
    return hmac.digest(extracted, info + b"\x01", hashlib.sha256)


def test_mask_is_the_documented_one():
    owned = dict.fromkeys(("site-a", "site-b"), ("decoder",))
    own = own_keys(owned=owned)
    keys: dict[str, MaskKey] = roster(own, owned)
    zeros = {"decoder": {"b": np.zeros(3, np.float32), "a": np.zeros((2, 4), np.float32)}}
    low = masked(zeros, {"decoder": 1}, own["site-a"], keys)["decoder"]
    high = masked(zeros, {"decoder": 1}, own["site-b"], keys)["decoder"]
    secret = own["site-a"].private.exchange(own["site-b"].private.public_key())
    info = ["iedn pairwise masks, version 1", "decoder", "site-a", "site-b"]
    info = json.dumps(info, separators=(",", ":")).encode()
    stream = chacha20(hkdf(secret, bytes.fromhex(roster_digest(ROUND, keys)), info), 2)
    expected = np.frombuffer(stream[: 11 * 8], "<u8")
    np.testing.assert_array_equal(np.concatenate([low["a"].ravel(), low["b"]]), expected)
    np.testing.assert_array_equal(np.concatenate([high["a"].ravel(), high["b"]]), -expected)
