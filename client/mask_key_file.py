"""The site's key for the masks of the round under way: on disk until it is used, used once.

It is written before its public half leaves, so that a site that was killed takes up the round with
the same key. Once the masked update is kept and logged, the private half is erased: from then on
not even the site itself can mask anything else with it, or take its mask off again.
"""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import ValidationError

from iedn.config import FrozenModel
from iedn.files import atomic_write_bytes
from iedn.masking import MaskRound, OwnMaskKey, signed_mask_key
from iedn.protocol.messages import Digest, MaskKey, RunName

FILE = "mask-key.json"


class _Stored(FrozenModel):
    run: RunName
    round: int
    base_hash: Digest
    site: str
    mask_key: MaskKey
    private: Digest | None


class MaskKeyFile:
    """The file of a site's folder; holds one round's key.

    Args:
        folder: the site's.
        round_: what a key must be for, to count.
    """

    def __init__(self, folder: Path, round_: MaskRound) -> None:
        self._path, self._round = folder / FILE, round_

    def public(self) -> MaskKey | None:
        """The signed key of this round, if there is one."""
        stored = self._stored()
        return None if stored is None else stored.mask_key

    def own(self) -> OwnMaskKey | None:
        """The key of this round with its private half, if it has not been erased."""
        stored = self._stored()
        if stored is None or stored.private is None:
            return None
        private = X25519PrivateKey.from_private_bytes(bytes.fromhex(stored.private))
        return OwnMaskKey(stored.site, private, self._round)

    def create(
        self, site: str, groups: tuple[str, ...], identity: ec.EllipticCurvePrivateKey
    ) -> MaskKey:
        """Make this round's key, in place of another round's, and sign it."""
        own = OwnMaskKey(site, X25519PrivateKey.generate(), self._round)
        mask_key = signed_mask_key(own, groups, identity)
        self._write(
            _Stored(
                run=self._round.run,
                round=self._round.number,
                base_hash=self._round.base_hash,
                site=site,
                mask_key=mask_key,
                private=own.private.private_bytes_raw().hex(),
            )
        )
        return mask_key

    def erase_private(self) -> None:
        """Forget the private half of this round's key."""
        stored = self._stored()
        if stored is not None and stored.private is not None:
            self._write(stored.model_copy(update={"private": None}))

    def _stored(self) -> _Stored | None:
        """What the file holds for this round; a damaged one counts as none: nothing has left."""
        try:
            stored = _Stored.model_validate_json(self._path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return (
            stored if MaskRound(stored.run, stored.round, stored.base_hash) == self._round else None
        )

    def _write(self, stored: _Stored) -> None:
        atomic_write_bytes(self._path, stored.model_dump_json().encode(), mode=0o600)
