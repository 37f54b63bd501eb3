"""Groups, strict loading and the hash of a model."""

import hashlib

import numpy as np
import pytest
import torch

from iedn.config import NetworkConfig
from iedn.errors import ProtocolError
from iedn.modalities import Modality
from iedn.model import build_network
from iedn.parameters import (
    flatten,
    group_of,
    groups_for,
    groups_of_network,
    load_groups,
    state_by_group,
    state_hash,
)

SMALL = NetworkConfig(base_channels=2, depth=1, modalities=(Modality.T1WI, Modality.ASL))


def test_names_map_to_groups():
    assert group_of("encoders.T1_C.stem.first.conv.weight") == "encoder.T1_C"
    assert group_of("decoder.head.output.norm.bias") == "decoder"
    assert group_of("refiner.stem.first.conv.weight") == "decoder"
    with pytest.raises(ProtocolError, match=r"wrong-key.*encoders\.DWI") as caught:
        group_of("encoders.DWI.stem")
    assert caught.value.code == "wrong-key"


def test_groups_of_modalities_are_in_the_enums_order():
    assert groups_for(["ASL", "T1WI"]) == ("encoder.T1WI", "encoder.ASL", "decoder")
    baseline = SMALL.model_copy(update={"architecture": "encoder-decoder"})
    assert groups_of_network(baseline) == ("decoder",)
    assert groups_of_network(SMALL) == ("encoder.T1WI", "encoder.ASL", "decoder")


@pytest.mark.parametrize("update", [{}, {"self_refine": True}, {"architecture": "encoder-decoder"}])
def test_state_holds_every_parameter_once_under_its_group(update):
    config = SMALL.model_copy(update=update)
    model = build_network(config, seed=0)
    groups = state_by_group(model)
    assert tuple(sorted(groups)) == tuple(sorted(groups_of_network(config)))
    assert set(flatten(groups)) == {name for name, _ in model.named_parameters()}
    for array in flatten(groups).values():
        assert array.dtype == np.float32
        assert array.flags.c_contiguous


def test_state_is_a_copy():
    model = build_network(SMALL, seed=0)
    groups = state_by_group(model)
    name = "decoder.head.output.norm.bias"
    groups["decoder"][name] += 1
    assert not np.array_equal(state_by_group(model)["decoder"][name], groups["decoder"][name])


def test_loading_groups_moves_only_those_groups():
    source, target = build_network(SMALL, seed=0), build_network(SMALL, seed=1)
    before, given = state_by_group(target), state_by_group(source)
    load_groups(target, {"encoder.ASL": given["encoder.ASL"]})
    after = state_by_group(target)
    assert state_hash(after["encoder.ASL"]) == state_hash(given["encoder.ASL"])
    assert state_hash(after["encoder.T1WI"]) == state_hash(before["encoder.T1WI"])
    assert state_hash(after["decoder"]) == state_hash(before["decoder"])


def test_a_model_round_trips_bit_for_bit_whatever_the_memory_layout():
    source, target = build_network(SMALL, seed=0), build_network(SMALL, seed=1)
    target.to(memory_format=torch.contiguous_format)
    load_groups(target, state_by_group(source))
    assert state_hash(flatten(state_by_group(target))) == state_hash(
        flatten(state_by_group(source))
    )


def test_loading_is_strict_and_changes_nothing_when_it_refuses():
    model = build_network(SMALL, seed=0)
    good = state_by_group(build_network(SMALL, seed=1))
    name = "encoders.ASL.stem.first.conv.weight"
    array = good["encoder.ASL"][name]

    def changed(value):
        return {"decoder": good["decoder"], "encoder.ASL": {**good["encoder.ASL"], name: value}}

    missing = {"encoder.ASL": {k: v for k, v in good["encoder.ASL"].items() if k != name}}
    extra = {"encoder.ASL": {**good["encoder.ASL"], "encoders.ASL.more": array}}
    cases = [
        ("wrong-dtype", changed(array.astype(np.float64))),
        ("wrong-shape", changed(array.reshape(-1))),
        ("wrong-key", missing),
        ("wrong-key", extra),
        ("wrong-group", {"encoder.FLAIR": good["encoder.ASL"]}),
    ]
    before = state_hash(flatten(state_by_group(model)))
    for code, groups in cases:
        with pytest.raises(ProtocolError) as caught:
            load_groups(model, groups)
        assert caught.value.code == code
        assert state_hash(flatten(state_by_group(model))) == before


def test_hash_is_over_sorted_names_dtypes_shapes_and_little_endian_bytes():
    tensors = {"b": np.array([[1.0, 2.0]], np.float32), "a": np.array([3], np.int64)}
    digest = hashlib.sha256()
    digest.update(b"a\0<i8\0(1,)\0" + (3).to_bytes(8, "little"))
    digest.update(b"b\0<f4\0(1, 2)\0" + bytes.fromhex("0000803f00000040"))
    assert state_hash(tensors) == digest.hexdigest()
    assert state_hash(dict(reversed(tensors.items()))) == digest.hexdigest()
    big = {**tensors, "b": tensors["b"].astype(">f4")}
    assert state_hash(big) == digest.hexdigest()


def test_hash_sees_name_shape_dtype_and_every_bit():
    base = np.zeros((2, 3), np.float32)
    bit = base.copy()
    bit[1, 2] = np.float32(1e-45)
    variants = [{"a": base}, {"b": base}, {"a": base.T}, {"a": base.astype(np.float64)}, {"a": bit}]
    variants.append({"a": -base})
    assert len({state_hash(v) for v in variants}) == len(variants)


def test_hash_does_not_depend_on_the_layout_in_memory():
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert state_hash({"a": np.asfortranarray(base)}) == state_hash({"a": base})
    assert state_hash({"a": np.float32(2.0).reshape(())}) == state_hash(
        {"a": np.array(2, np.float32)}
    )
