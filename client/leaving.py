"""What would leave this site under its policy, in plain words and with its own numbers.

Read before joining; the words follow ``sites.egress``, which decides.
"""

from collections.abc import Mapping

from iedn.parameters import groups_for
from sites.config import PolicyConfig, ReleaseKind, SiteConfig
from sites.egress import TrainingCounts, coarsen
from sites.privacy import PrivacyConfig

NEVER = (
    "never: images, maps, values of a scan, identifiers of patients or scans, paths, host names, "
    "texts of errors"
)

Parts = Mapping[str, TrainingCounts]
"""Counts of the cohort's parts: ``train``, ``validation``, ``test``, ``all``."""


def what_leaves(config: SiteConfig, parts: Parts) -> list[str]:
    """One sentence for each thing that leaves, or is kept back, and when.

    Args:
        config: the site's, with its policy.
        parts: exact counts; they stay here.
    """
    if config.role == "train":
        lines = [_declared(config.policy, parts["train"])]
        lines += _update(config.policy, parts["train"])
        lines.append(_noise(config.privacy, parts["train"]))
        lines += [_metrics(config.policy, parts, name) for name in ("validation", "test")]
    else:
        lines = [
            "on joining: role, package version, hash of the model it keeps of the run, and which "
            "modalities there are (no numbers)"
        ]
        lines.append(_diagnostic(config.policy, parts["all"]))
    lines.append("with a released model: a receipt; on an error: a code and a random number")
    return [*lines, NEVER]


def _declared(policy: PolicyConfig, counts: TrainingCounts) -> str:
    step = policy.count_step
    by_modality = ", ".join(f"{m} {coarsen(n, step)}" for m, n in counts.scans_by_modality.items())
    return (
        f"on joining: role, package version, hash of the model it keeps of the run, and training "
        f"scans rounded down to multiples of {step}: {coarsen(counts.scans, step)} in all "
        f"({by_modality})"
    )


def _update(policy: PolicyConfig, counts: TrainingCounts) -> list[str]:
    if reason := _kept_back("update", policy, counts.patients):
        return [f"no update of the model: {reason}; this site would contribute nothing"]
    groups = groups_for(counts.scans_by_modality)
    few = [g for g in groups if counts.patients_behind(g) < policy.min_patients]
    sent = ", ".join(g for g in groups if g not in few)
    sites = (
        f"each only where {policy.min_group_sites} sites or more train it, and none of them has "
        f"more than {policy.max_group_percent:g} % of its scans"
    )
    if policy.reveal_small_group:
        sites = "even where no other site trains it (reveal_small_group)"
    lines = [f"each round: the change of {sent}; {sites}; {_masks(policy)}"]
    if few:
        numbers = ", ".join(f"{g} ({counts.patients_behind(g)} patients)" for g in few)
        lines.append(f"kept back: {numbers}; policy.min_patients is {policy.min_patients}")
    return lines


def _masks(policy: PolicyConfig) -> str:
    if policy.require_secure_aggregation:
        return "under masks only: the coordinator reads sums over sites, never this site's own"
    return "the coordinator can read it, unless it asks for masks (require_secure_aggregation)"


def _noise(privacy: PrivacyConfig, counts: TrainingCounts) -> str:
    promise = f"noise in updates ({privacy.tier}): {privacy.promise}"
    if not privacy.is_on:
        return promise
    too_large = f" (TOO LARGE: not less than 1 / {counts.patients} patients)"
    return (
        f"{promise}; epsilon {privacy.budget:g} over all runs, delta {privacy.delta:g}"
        f"{too_large if counts.patients * privacy.delta >= 1 else ''}, "
        f"trained and sent: {privacy.trained_part}. Counts, image quality and time are not "
        "covered. With each update: the epsilon spent so far, the entries of the ledger, its hash"
    )


def _metrics(policy: PolicyConfig, parts: Parts, name: str) -> str:
    counts = parts[name]
    when = "each round" if name == "validation" else "at the end"
    if reason := _kept_back("metrics", policy, counts.patients):
        return f"{when}: no image quality on {name} patients: {reason}"
    return (
        f"{when}: mean and standard deviation of {', '.join(policy.metrics)} over the {name} "
        f"scans, and their number as {coarsen(counts.scans, policy.release_step)}"
    )


def _diagnostic(policy: PolicyConfig, counts: TrainingCounts) -> str:
    if reason := _kept_back("diagnostic", policy, counts.patients):
        return f"at the end: no diagnostic value: {reason}"
    return (
        "at the end: areas under the ROC curve of synthetic CBV and of ASL, scans of "
        f"each outcome, and the number of scans as {coarsen(counts.scans, policy.release_step)}"
    )


def _kept_back(kind: ReleaseKind, policy: PolicyConfig, patients: int) -> str:
    """Why the policy lets nothing of a kind leave; empty if it does."""
    if kind not in policy.releases:
        return f'policy.releases does not name "{kind}"'
    if kind == "metrics" and not policy.metrics:
        return "policy.metrics names none"
    if patients < policy.min_patients:
        return f"{patients} patients, policy.min_patients is {policy.min_patients}"
    return ""
