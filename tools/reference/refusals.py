"""``docs/reference/exit-codes.md``: what commands end with, and why a reply did not count."""

from collections.abc import Iterator

from iedn import errors
from iedn.console import EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_USAGE
from iedn.errors import IednError

HEAD = """# Exit codes and refusals

Made from the code by `python -m tools.reference`; a test keeps the two the same.

## Exit codes

An error is one sentence on standard error: what is wrong, where (file, key, value), what is
allowed, what to do. Codes are stable; scripts may lean on them.

| code | when |
|---|---|
"""
FURTHER = {
    0: "Done.",
    IednError.exit_code: "Something failed that is none of the following; the sentence says what.",
    EXIT_USAGE: "A command, argument or option that does not exist, or a value out of its range.",
    EXIT_INTERRUPTED: "Ctrl-C. What is committed is kept; the same command goes on.",
    EXIT_TERMINATED: "SIGTERM, likewise.",
}
INCIDENTS = """
## Refusals

What stands in a roster (`iedn-server status`, `history.jsonl`) beside a site that did not
contribute. A code that is not here is that of [a finding](codes.md) or the name of an error.
With a code of the site's own comes an incident: a random number under which the site's log has
the whole story.

| code | who says it | what happened | what to do |
|---|---|---|---|
"""
# code -> (who says it, what happened, what to do)
REFUSALS: dict[str, tuple[str, str, str]] = {
    "all-held": (
        "coordinator",
        "The site's policy held every group back.",
        "Nothing, or look at `min_group_sites` and `max_group_share` at the site.",
    ),
    "failure": ("coordinator", "The site answered with an error.", "Ask the site, by incident."),
    "ledger-rolled-back": (
        "coordinator",
        "The site's privacy ledger has fewer entries than before.",
        "[After a restore](../explanation/privacy-ledger.md#for-the-it-officer).",
    ),
    "malformed": ("either", "No message, or one that does not decode.", "Compare versions."),
    "mask-roster": (
        "either",
        "The set of sites and mask keys is not the one of this round.",
        "Write the roster again and have it accepted.",
    ),
    "mask-signature": (
        "either",
        "A mask key is not signed by a key that is known.",
        "Compare fingerprints by telephone.",
    ),
    "mask-spent": (
        "site",
        "A masked update of this round has left already; there is never a second one.",
        "Nothing: the next round asks anew.",
    ),
    "no-modality": ("coordinator", "The site declares no modality.", "Check its manifest."),
    "no-peers": ("site", "The site has accepted no list of sites.", "`iedn-client peers accept`."),
    "no-scans": ("coordinator", "The site declares no training scans.", "Check its manifest."),
    "norm": ("coordinator", "The update is longer than the bound.", "Look at the site's data."),
    "not-finite": ("either", "NaN or Inf in a tensor.", "Look at the site's data and log."),
    "too-large": (
        "either",
        "A value above the range of the exact sum.",
        "Look at the site's data.",
    ),
    "unknown-peer": (
        "site",
        "A mask key of a site that was not accepted here.",
        "Compare fingerprints, then accept the list.",
    ),
    "wrong-areas": ("coordinator", "Seven numbers that cannot be.", "Ask the site."),
    "wrong-base": (
        "either",
        "Another model than that of the round.",
        "Nothing: it is asked again.",
    ),
    "wrong-dtype": ("either", "A tensor of another type.", "Compare versions."),
    "wrong-encoding": (
        "either",
        "A quantised tensor is not in the form that the round demands.",
        "Compare versions.",
    ),
    "wrong-scale": (
        "either",
        "The scale of a quantised tensor is not a finite number, or out of range.",
        "Compare versions; ask the site.",
    ),
    "wrong-size": (
        "either",
        "A message has more or fewer bytes than its tensors take.",
        "Compare versions.",
    ),
    "wrong-group": ("either", "Groups that are missing or too many.", "Compare versions."),
    "wrong-key": ("either", "Tensors that are missing or too many.", "Compare versions."),
    "wrong-message": ("either", "Another message than the one expected.", "Compare versions."),
    "wrong-protocol": ("either", "Another version of the messages.", "Install the same release."),
    "wrong-role": (
        "coordinator",
        "The site declares another role than `federation.toml` has.",
        "Make the two agree.",
    ),
    "wrong-round": ("coordinator", "An answer to another round.", "Nothing: it is asked again."),
    "wrong-run": ("coordinator", "An answer to another run.", "Nothing: it is asked again."),
    "wrong-shape": ("either", "A tensor of another shape.", "Compare versions."),
    "wrong-weight": (
        "coordinator",
        "Another weight than was declared, or a total above 2^20.",
        "The site joins again after its manifest has changed.",
    ),
}
OUTSIDE = {
    "internal": (
        "site",
        "An error that the program did not foresee.",
        "The site's log; report it.",
    ),
    "policy": ("site", "The site's policy says no.", "`iedn-client check` says what it allows."),
    "late": (
        "coordinator",
        "No answer before `deadline_s`.",
        "A longer deadline, or a look there.",
    ),
    "offline": (
        "coordinator",
        "The site was not connected for longer than `offline_grace_s`.",
        "Start its client; it joins the next round.",
    ),
}


def page() -> str:
    """The page."""
    entries = sorted((REFUSALS | OUTSIDE).items())
    rows = (f"| `{code}` | {' | '.join(said)} |" for code, said in entries)
    return HEAD + "\n".join(_exit_rows()) + "\n" + INCIDENTS + "\n".join(rows) + "\n"


def _exit_rows() -> Iterator[str]:
    said: dict[int, list[str]] = {code: [text] for code, text in FURTHER.items()}
    for kind in _kinds(IednError):
        said.setdefault(kind.exit_code, []).append((kind.__doc__ or "").splitlines()[0])
    for code, texts in sorted(said.items()):
        yield f"| {code} | {' '.join(dict.fromkeys(texts))} |"


def _kinds(base: type[IednError]) -> Iterator[type[IednError]]:
    """The errors of ``iedn.errors`` that have an exit code of their own, the general ones first."""
    if (
        base is not IednError
        and "exit_code" in base.__dict__
        and base.__module__ == errors.__name__
    ):
        yield base
    for kind in base.__subclasses__():
        yield from _kinds(kind)
