"""A mask key is of one round, kept until it is used, and gone for good afterwards."""

import json
import stat

from cryptography.hazmat.primitives.asymmetric import ec

from client.mask_key_file import FILE, MaskKeyFile
from iedn.masking import MaskRound, check_mask_key

IDENTITY = ec.derive_private_key(7, ec.SECP384R1())
ROUND = MaskRound("run-1", 3, "c" * 64)


def test_same_key_as_often_as_it_is_asked_for(tmp_path):
    made = MaskKeyFile(tmp_path, ROUND).create("site-a", ("decoder",), IDENTITY)
    check_mask_key(made, IDENTITY.public_key(), ROUND, "site-a")
    later = MaskKeyFile(tmp_path, ROUND)
    assert later.public() == made
    own = later.own()
    assert own.private.public_key().public_bytes_raw().hex() == made.key
    assert (own.site, own.round) == ("site-a", ROUND)
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_erased_key_is_still_known_but_masks_nothing(tmp_path):
    file = MaskKeyFile(tmp_path, ROUND)
    made = file.create("site-a", ("decoder",), IDENTITY)
    secret = json.loads((tmp_path / FILE).read_text())["private"]
    file.erase_private()
    file.erase_private()
    assert file.public() == made
    assert file.own() is None
    assert secret not in (tmp_path / FILE).read_text()


def test_key_is_good_for_its_round_alone(tmp_path):
    MaskKeyFile(tmp_path, ROUND).create("site-a", ("decoder",), IDENTITY)
    others = [
        MaskRound("run-2", 3, "c" * 64),
        MaskRound("run-1", 4, "c" * 64),
        MaskRound("run-1", 3, "d" * 64),
    ]
    assert [MaskKeyFile(tmp_path, other).own() for other in others] == [None] * 3
    second = MaskKeyFile(tmp_path, others[1]).create("site-a", ("decoder",), IDENTITY)
    assert MaskKeyFile(tmp_path, ROUND).public() is None, "the next round's takes its place"
    assert MaskKeyFile(tmp_path, others[1]).public() == second


def test_missing_or_damaged_file_holds_no_key(tmp_path):
    file = MaskKeyFile(tmp_path, ROUND)
    assert file.public() is None
    file.create("site-a", ("decoder",), IDENTITY)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-9])
    assert file.public() is None
    file.erase_private()
