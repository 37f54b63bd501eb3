"""Payloads: what comes back, what is fed back, and what is refused before it is decompressed."""

import tracemalloc

import numpy as np
import pytest
import zstandard

from iedn.errors import RefusedError
from iedn.protocol.encoding import (
    apply_delta,
    content_bytes,
    decode,
    encode,
    encoding_of,
    payload_limit,
)
from iedn.quantisation import ENCODINGS

HEADER = 13
RNG = np.random.default_rng(5)
TENSORS = {
    "decoder.kernel": RNG.normal(0.0, 1e-3, (4, 3, 3, 5)),
    "decoder.bias": RNG.normal(0.0, 1e-2, (7,)),
    "decoder.gain": np.array(0.25),
}
LAYOUT = {name: value.shape for name, value in TENSORS.items()}


def payload(encoding="int8", *, entropy_coding=True, tensors=TENSORS):
    return encode(tensors, {}, encoding, entropy_coding=entropy_coding).payload


def refusal(content, layout=LAYOUT, encoding="int8"):
    with pytest.raises(RefusedError) as error:
        decode(content, layout, encoding)
    return error.value.code


@pytest.mark.parametrize("entropy_coding", [True, False])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_round_trip(encoding, entropy_coding):
    encoded = encode(TENSORS, {}, encoding, entropy_coding=entropy_coding)
    assert encoding_of(encoded.payload) == encoding
    decoded = decode(encoded.payload, LAYOUT, encoding)
    for name, wanted in TENSORS.items():
        assert decoded[name].dtype == np.float32
        assert decoded[name].shape == wanted.shape
        assert decoded[name].tobytes() == encoded.decoded[name].tobytes()
        assert np.array_equal(decoded[name] + encoded.residual[name], wanted)


def test_payload_by_hand():
    tensors = {"b": np.array([3.0]), "a": np.array([64.0, -2.0])}
    content = payload(tensors=tensors, entropy_coding=False)
    assert content[:3] == b"IQ1"
    assert content[3:5] == bytes([ENCODINGS.index("int8"), 0])
    # Scales of a and b, then their codes: 64 = 64 * 2^0, -2 = -2 * 2^0, 3 = 96 * 2^-5.
    assert np.frombuffer(content[HEADER:], np.int8).tolist() == [0, -5, 64, -2, 96]
    assert len(content) == payload_limit({"a": (2,), "b": (1,)}, "int8")


def test_entropy_coding_is_used_only_where_it_helps():
    zeros = {"a": np.zeros(100_000)}
    assert len(payload(tensors=zeros)) < 200
    assert len(payload(tensors=zeros, entropy_coding=False)) == HEADER + 13 + 100_000
    noise = {"a": np.random.default_rng(1).uniform(-127, 127, 300)}
    assert len(payload(tensors=noise)) == HEADER + 1 + 300


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_error_feedback_sums_to_the_truth(encoding):
    """Multiples of 2^-20 keep float64 exact: what was decoded and what is left is all there was."""
    rng = np.random.default_rng(7)
    residual, truth, decoded = {}, np.zeros(300), np.zeros(300)
    worst_residual = 0.0
    for _ in range(40):
        delta = np.rint(rng.normal(0.0, 1e-2, 300) * 2**20) / 2**20
        encoded = encode({"a": delta}, residual, encoding, entropy_coding=True)
        residual = encoded.residual
        truth += delta
        decoded += encoded.decoded["a"]
        worst_residual = max(worst_residual, float(np.abs(residual["a"]).max()))
    assert np.array_equal(decoded + residual["a"], truth)
    assert worst_residual < 0.05  # what is left over does not grow from round to round


def test_without_feedback_small_values_would_never_arrive():
    tensors = {"a": np.array([1.0] + [0.003] * 20)}
    residual, arrived = {}, np.zeros(21)
    for _ in range(50):
        encoded = encode(tensors, residual, "int8", entropy_coding=True)
        residual = encoded.residual
        arrived += encoded.decoded["a"]
    alone = encode(tensors, {}, "int8", entropy_coding=True).decoded["a"]
    assert not alone[1:].any()
    np.testing.assert_allclose(arrived / 50, tensors["a"], atol=2e-4)


def test_delta_is_added_in_float64_and_rounded_once():
    base = {"a": np.array([1.0, 2.0**-20], np.float32)}
    moved = apply_delta(base, {"a": np.array([2.0**-24, 2.0**-30], np.float32)})
    assert moved["a"].dtype == np.float32
    assert moved["a"].tolist() == [1.0, 2.0**-20 + 2.0**-30]  # half a unit, to even; exact


def test_bomb_is_refused_before_it_is_decompressed():
    size = content_bytes(LAYOUT, "int8")
    bomb = zstandard.ZstdCompressor().compress(bytes(200_000_000))
    assert len(bomb) > size  # too long by itself ...
    small = {"a": (50_000,)}
    honest = payload(tensors={"a": np.zeros(50_000)})
    tracemalloc.start()
    try:
        assert refusal(honest[:HEADER] + bomb, small) == "wrong-size"  # ... or short enough
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def streamed(content):
    """A frame that does not say how long its content is."""
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return compressor.compress(content) + compressor.flush()


def body(size, value=0):
    return zstandard.ZstdCompressor().compress(bytes([value]) * size)


def test_hostile_payloads_are_refused():
    tensors = {"a": np.zeros(50_000)}
    layout = {"a": (50_000,)}
    good = payload(tensors=tensors)
    head, size = good[:HEADER], content_bytes(layout, "int8")
    hostile = {
        "no payload at all": (b"", "malformed"),
        "half a header": (good[:10], "malformed"),
        "another format": (b"IQ2" + good[3:], "malformed"),
        "an unknown encoding": (good[:3] + b"\x09" + good[4:], "wrong-encoding"),
        "another encoding": (payload("int4", tensors=tensors), "wrong-encoding"),
        "an unknown compression": (good[:4] + b"\x07" + good[5:], "malformed"),
        "other tensors": (payload(tensors={"b": np.zeros(50_000)}), "wrong-key"),
        "another shape": (payload(tensors={"a": np.zeros((500, 100))}), "wrong-key"),
        "one byte more": (head + body(size + 1), "wrong-size"),
        "one byte less": (head + body(size - 1), "wrong-size"),
        "no length": (head + streamed(bytes(size)), "wrong-size"),
        "not compressed": (head + b"x" * 100, "malformed"),
        "a torn frame": (good[:-3], "malformed"),
        "two frames": (good + body(10), "malformed"),
        "bytes behind the frame": (good + b"x", "malformed"),
        "plain and short": (good[:4] + b"\x00" + head[5:] + bytes(size - 1), "wrong-size"),
        "plain and long": (good[:4] + b"\x00" + head[5:] + bytes(size + 1), "wrong-size"),
        "scales of 2^127": (head + body(size, 127), "wrong-scale"),
    }
    found = {name: refusal(content, layout) for name, (content, _) in hostile.items()}
    assert found == {name: code for name, (_, code) in hostile.items()}


def test_random_damage_is_refused_or_decodes_to_bounded_numbers():
    good = payload()
    rng = np.random.default_rng(3)
    for _ in range(300):
        damaged = bytearray(good)
        for _ in range(int(rng.integers(1, 4))):
            damaged[int(rng.integers(len(damaged)))] = int(rng.integers(256))
        try:
            decoded = decode(bytes(damaged), LAYOUT, "int8")
        except RefusedError:
            continue
        assert {n: v.shape for n, v in decoded.items()} == LAYOUT
        assert all(np.isfinite(v).all() for v in decoded.values())
