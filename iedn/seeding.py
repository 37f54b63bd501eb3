"""Seeds for training: every random choice derives from (run seed, round, site).

Privacy noise and privacy sampling never use these; they draw from the operating system.
"""

import hashlib


def derive_seed(run_seed: int, *, round_number: int, site: str, purpose: str) -> int:
    """A 63-bit seed; other arguments give an independent one.

    Args:
        run_seed: the run's seed.
        round_number: the round.
        site: name of the site.
        purpose: what the seed is for, e.g. ``training``.
    """
    text = f"{run_seed}\n{round_number}\n{site}\n{purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
