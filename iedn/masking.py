"""Pairwise masks: updates that can be read only as the sum over all sites that masked them.

For a round, every site k makes an X25519 key pair and signs the public half, with the groups it
means to send, by the P-384 key that it is known by (``statement_of``). With all signed keys (the
mask roster) at hand, sites k < l of a group g derive one mask from what only the two of them know::

    m_kl,g = ChaCha20(HKDF-SHA256(X25519(k, l), salt = roster digest, info = g, k, l))
    upload_k,g = w_kg quantise(D_kg) + sum_{l > k} m_kl,g - sum_{l < k} m_lk,g      (mod 2^64)

In the sum over all sites of the group every mask stands once with each sign. What is left is the
very integer that the plain sum gives. The roster's digest is in every mask: sites that were shown
different rosters, or another round's, make masks that never cancel.

After Bonawitz et al. 2017 (doi:10.1145/3133956.3133982) without the recovery of sites that drop
out: a group that misses one of its sites cannot be opened by anybody.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from .errors import RefusedError
from .fixed_point import quantise
from .protocol.messages import MaskKey, MaskKeyReply, RoundRequest

_PURPOSE = "iedn pairwise masks, version 1"

MaskKeys = Mapping[str, MaskKey]
RingGroups = dict[str, dict[str, NDArray[np.uint64]]]
"""Tensors of integers modulo 2^64, by group and tensor name."""


@dataclass(frozen=True)
class MaskRound:
    """What a mask key is for; it is good for nothing else.

    Attributes:
        run: name of the run.
        number: of the round.
        base_hash: hash of the model the updates start from.
    """

    run: str
    number: int
    base_hash: str

    @classmethod
    def of(cls, message: RoundRequest | MaskKeyReply) -> "MaskRound":
        """The round that a message is about."""
        return cls(message.run, message.round, message.base_hash)


@dataclass(frozen=True)
class OwnMaskKey:
    """A site's own key of a round.

    Attributes:
        site: its name.
        private: the half that never leaves.
        round: what it is for.
    """

    site: str
    private: X25519PrivateKey
    round: MaskRound


def signed_mask_key(
    own: OwnMaskKey, groups: tuple[str, ...], identity: ec.EllipticCurvePrivateKey
) -> MaskKey:
    """The public half, with the groups that the site means to send, signed."""
    key = own.private.public_key().public_bytes_raw().hex()
    statement = statement_of(own.round, own.site, key, groups)
    signature = identity.sign(statement, ec.ECDSA(hashes.SHA384()))
    return MaskKey(key=key, groups=groups, signature=signature.hex())


def check_mask_key(
    mask_key: MaskKey, identity: ec.EllipticCurvePublicKey, round_: MaskRound, site: str
) -> None:
    """Refuse a key that the site did not sign for this round.

    Raises:
        RefusedError: ``mask-signature``.
    """
    statement = statement_of(round_, site, mask_key.key, mask_key.groups)
    try:
        identity.verify(bytes.fromhex(mask_key.signature), statement, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError):
        text = f"{site} did not sign this mask key for round {round_.number} of {round_.run}"
        raise RefusedError("mask-signature", text) from None


def statement_of(round_: MaskRound, site: str, key: str, groups: tuple[str, ...]) -> bytes:
    """What is signed; JSON, so that no two statements share their bytes."""
    return _canonical([_PURPOSE, round_.run, round_.number, round_.base_hash, site, key, *groups])


def members_of(keys: MaskKeys, group: str) -> tuple[str, ...]:
    """Sites that mean to send a group, sorted."""
    return tuple(sorted(site for site, key in keys.items() if group in key.groups))


def roster_digest(round_: MaskRound, keys: MaskKeys) -> str:
    """SHA-256 (hex) of the round and of who takes part in it with which key and groups."""
    roster = [[site, keys[site].key, *keys[site].groups] for site in sorted(keys)]
    content = [_PURPOSE, round_.run, round_.number, round_.base_hash, roster]
    return hashlib.sha256(_canonical(content)).hexdigest()


def masked(
    deltas: Mapping[str, Mapping[str, NDArray[np.float32]]],
    weights: Mapping[str, int],
    own: OwnMaskKey,
    keys: MaskKeys,
) -> RingGroups:
    """Weighted, quantised deltas under the masks of all other members of their groups.

    Args:
        deltas: what the site's gate let pass, float32, by group and tensor name.
        weights: declared scans behind each of these groups.
        own: this site's key.
        keys: the mask roster; must hold this site, and have been checked.

    Raises:
        RefusedError: ``mask-roster``: this site has not signed for one of the groups, or a key is
            no point that a secret can be made with.
    """
    return {
        group: _masked_group(tensors, weights[group], list(_streams(group, own, keys)))
        for group, tensors in deltas.items()
    }


@dataclass(frozen=True)
class _Stream:
    """Key of the mask that two sites share in a group, and the sign with which it counts here."""

    key: bytes
    adds: bool


def _streams(group: str, own: OwnMaskKey, keys: MaskKeys) -> Iterator[_Stream]:
    salt = bytes.fromhex(roster_digest(own.round, keys))
    members = members_of(keys, group)
    if own.site not in members:
        raise RefusedError("mask-roster", f"{own.site} has not signed for {group}")
    for peer in members:
        if peer == own.site:
            continue
        low, high = sorted((own.site, peer))
        info = _canonical([_PURPOSE, group, low, high])
        secret = _shared_secret(own.private, keys[peer].key, peer)
        yield _Stream(HKDF(hashes.SHA256(), 32, salt, info).derive(secret), own.site == low)


def _shared_secret(private: X25519PrivateKey, key: str, peer: str) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(key)))
    except ValueError:  # a point of small order
        raise RefusedError("mask-roster", f"the key of {peer} gives no secret") from None


def _masked_group(
    tensors: Mapping[str, NDArray[np.float32]], weight: int, streams: list[_Stream]
) -> dict[str, NDArray[np.uint64]]:
    # The key is used for this one stream only, so that its nonce may be zero.
    ciphers = [
        (Cipher(algorithms.ChaCha20(s.key, bytes(16)), mode=None).encryptor(), s.adds)
        for s in streams
    ]
    result = {}
    for name in sorted(tensors):
        flat = (quantise(tensors[name].reshape(-1)) * np.int64(weight)).view(np.uint64)
        zeros = bytes(flat.nbytes)
        for cipher, adds in ciphers:
            mask = np.frombuffer(cipher.update(zeros), dtype="<u8")
            (np.add if adds else np.subtract)(flat, mask, out=flat)
        result[name] = flat.reshape(tensors[name].shape)
    return result


def _canonical(content: list[object]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
