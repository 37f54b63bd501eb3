"""Quantisation against values worked out by hand, and properties over many random tensors."""

import numpy as np
import pytest

from iedn.errors import RefusedError
from iedn.fixed_point import FRACTION_BITS
from iedn.fixed_point import quantise as fixed_point
from iedn.quantisation import (
    BLOCK,
    ENCODINGS,
    dequantise,
    num_code_bytes,
    num_scales,
    quantise,
)


def both_ways(values, encoding):
    values = np.asarray(values, np.float64)
    scales, codes = quantise(values, encoding)
    return dequantise(scales, codes, values.size, encoding)


def test_int8_by_hand():
    # Largest 1.0: 1.0 / 127 = 2^-6.99, so the scale is 2^-6 and the codes are x * 64, half to even.
    scales, codes = quantise(np.array([1.0, -0.5, 0.01, 1.5 / 64, 2.5 / 64]), "int8")
    assert scales.view(np.int8).tolist() == [-6]
    assert codes.view(np.int8).tolist() == [64, -32, 1, 2, 2]
    expected = [1.0, -0.5, 1 / 64, 2 / 64, 2 / 64]
    assert dequantise(scales, codes, 5, "int8").tolist() == expected


def test_int8_uses_the_scale_that_just_fits():
    assert quantise(np.array([127.0]), "int8")[0].view(np.int8).tolist() == [0]
    assert quantise(np.array([127.5]), "int8")[0].view(np.int8).tolist() == [1]
    assert both_ways([127.0, 1.0], "int8").tolist() == [127.0, 1.0]


def test_int4_by_hand():
    # Largest 7: scale 1 is exact. Codes 7, -7, 1 and nothing, each + 8: 15 1 9 8 in nibbles.
    scales, codes = quantise(np.array([7.0, -7.0, 1.0]), "int4")
    assert scales.view(np.int8).tolist() == [0]
    assert codes.tolist() == [15 | 1 << 4, 9 | 8 << 4]
    assert dequantise(scales, codes, 3, "int4").tolist() == [7.0, -7.0, 1.0]


def test_int4_clips_one_outlier_for_the_sake_of_many():
    # With scale 2 the 1s become 0 (half to even): error 100 * 1. With scale 1 the 8 becomes 7: 1.
    decoded = both_ways([8.0] + [1.0] * 100, "int4")
    assert decoded.tolist() == [7.0] + [1.0] * 100
    # A single large value against few small ones is kept: 2^4 against an error of 9^2.
    assert both_ways([16.0, 1.0], "int4").tolist() == [16.0, 0.0]


def test_bf16_by_hand():
    # 1 + 2^-8 lies between 1 and 1 + 2^-7: half to even is 1; 1 + 3 * 2^-8 goes up to 1 + 2^-6.
    assert both_ways([1 + 2**-8, 1 + 3 * 2**-8], "bf16").tolist() == [1.0, 1 + 2**-6]
    # Below 2^-30 there is only the grid: 0.4 of a step is nothing, 0.6 is one.
    assert both_ways([0.4 * 2**-30, 0.6 * 2**-30], "bf16").tolist() == [0.0, 2**-30]


def test_fp16_by_hand():
    assert both_ways([1 + 2**-11, 1 + 3 * 2**-11], "fp16").tolist() == [1.0, 1 + 2**-9]
    assert both_ways([0.6 * 2**-24], "fp16").tolist() == [2**-24]


def test_the_first_byte_plane_of_two_byte_codes_is_the_low_one():
    _, codes = quantise(np.array([1.0, 2.0]), "fp16")
    assert codes.tobytes() == bytes([0x00, 0x00, 0x3C, 0x40])  # 0x3C00 and 0x4000


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (256,), (257,), (8192,), (8193,)])
def test_sizes_are_known_beforehand_and_zeros_stay_zeros(encoding, shape):
    values = np.zeros(shape)
    scales, codes = quantise(values, encoding)
    assert scales.size == num_scales(values.size, encoding)
    assert codes.size == num_code_bytes(values.size, encoding)
    decoded = dequantise(scales, codes, values.size, encoding)
    assert decoded.dtype == np.float32
    assert decoded.tolist() == [0.0] * values.size


def random_tensors():
    """Tensors of many sizes and magnitudes, normal and heavy-tailed, with zeros among them."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        size = int(rng.integers(1, 3 * BLOCK["int4"]))
        values = rng.standard_t(2 + seed % 3, size) * 10.0 ** rng.uniform(-9, 1)
        values[rng.random(size) < 0.1] = 0.0
        yield np.clip(values, -(2.0**10), 2.0**10)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_decoded_value_is_exact_in_the_fixed_point_of_the_sum(encoding):
    for values in random_tensors():
        decoded = both_ways(values, encoding)
        exact = decoded.astype(np.float64) * 2.0**FRACTION_BITS
        assert np.array_equal(fixed_point(decoded), exact)


@pytest.mark.parametrize(("encoding", "relative"), [("fp16", 2.0**-11), ("bf16", 2.0**-8)])
def test_half_precision_errs_by_half_a_unit_in_the_last_place(encoding, relative):
    smallest_step = {"fp16": 2.0**-24, "bf16": 2.0**-30}[encoding]
    for values in random_tensors():
        error = np.abs(both_ways(values, encoding) - values)
        assert (error <= np.abs(values) * relative + smallest_step / 2 * 1.0001).all()


def test_int8_errs_by_less_than_a_hundredth_of_the_largest_value_of_a_block():
    for values in random_tensors():
        error = np.abs(both_ways(values, "int8") - values)
        # Half a step; a step is a power of two, less than twice largest / 127.
        assert error.max() <= max(np.abs(values).max() / 127, 2.0**-31)


def test_decoded_values_decode_to_themselves():
    for values in random_tensors():
        once = both_ways(values, "int8")
        assert np.array_equal(both_ways(once, "int8"), once)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("value", "code"),
    [(np.nan, "not-finite"), (np.inf, "not-finite"), (1024.1, "too-large"), (-1e9, "too-large")],
)
def test_values_that_no_update_may_have_are_refused(encoding, value, code):
    with pytest.raises(RefusedError) as error:
        quantise(np.array([0.0, value]), encoding)
    assert error.value.code == code


@pytest.mark.parametrize("encoding", ["int8", "int4"])
@pytest.mark.parametrize("exponent", [-31, 11, 127, -128])
def test_scales_out_of_range_are_refused(encoding, exponent):
    scales = np.array([exponent], np.int8).view(np.uint8)
    with pytest.raises(RefusedError, match="wrong-scale"):
        dequantise(scales, np.zeros(1, np.uint8), 1, encoding)
