"""What ``iedn-client audit`` does: canaries against the site's noise, losses against a model."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from iedn.config import PrivacyDemand
from iedn.console import showing_progress
from iedn.errors import ConfigError, IednError
from sites.config import SiteConfig

from .canaries import AUDIT_DELTA, CanaryAudit, audit_noise
from .evaluate_command import prepared
from .membership import MembershipInference, infer_membership
from .model_file import load_model_file
from .private_training import noise_plan


class AuditError(IednError):
    """The noise is not what the accountant assumes."""


def audit_site(
    config: SiteConfig, model: Path | None, *, steps: int, canaries: int, as_json: bool
) -> str:
    """The text of the audit; nothing of it leaves the site.

    Args:
        config: the site's.
        model: a released model to try membership inference on.
        steps: of a round, by which the site's noise is planned.
        canaries: made-up patients.
        as_json: JSON rather than sentences.

    Raises:
        ConfigError: there is nothing to audit: no noise, and no model.
        AuditError: a claim about the noise is refuted.
    """
    if not config.privacy.is_on and model is None:
        raise ConfigError(
            "privacy.tier is 'off': there is no noise to audit",
            where="site.toml: privacy.tier",
            allowed="another tier, or --model FILE to try membership inference",
        )
    content: dict[str, Any] = {"site": config.name, "tier": config.privacy.tier}
    lines = [f"privacy tier {config.privacy.tier}: {config.privacy.promise}"]
    if config.privacy.is_on:
        found = _audited(config, steps=steps, canaries=canaries)
        content["canaries"] = {**asdict(found), "delta": AUDIT_DELTA}
        lines += _canary_lines(found)
    if model is not None:
        attack = _attacked(config, model, as_json=as_json)
        content["membership_inference"] = asdict(attack)
        lines += _membership_lines(attack)
    return json.dumps(content, indent=2) if as_json else "\n".join(lines)


def _audited(config: SiteConfig, *, steps: int, canaries: int) -> CanaryAudit:
    plan = noise_plan(config.privacy, PrivacyDemand(), steps=steps)
    found = audit_noise(plan, canaries=canaries)
    if found.violations:
        raise AuditError(
            f"the audit refutes the claimed {' and '.join(found.violations)}: {asdict(found)}. "
            "Do not train with this installation; report it with this line"
        )
    return found


def _attacked(config: SiteConfig, model: Path, *, as_json: bool) -> MembershipInference:
    file = load_model_file(model)
    cohort = prepared(config, file.grid, as_json=as_json)
    with showing_progress(as_json=as_json):
        return infer_membership(file.network, cohort, device=torch.device(config.device))


def _canary_lines(found: CanaryAudit) -> list[str]:
    return [
        f"canaries: {found.canaries} made-up patients, {found.steps} steps of the real optimiser",
        f"  epsilon at delta {AUDIT_DELTA:g}: at least {found.least_epsilon:.2f} by guessing who "
        f"was in; the accountant says at most {found.claimed_epsilon:.2f}",
        f"  distance of those that were in: {found.measured_mu:.3f} standard deviations, "
        f"{found.expected_mu:.3f} expected (refuted from {found.mu_margin:.3f} above it)",
        f"  noise: {found.noise_ratio:.3f} of what is claimed "
        f"(refuted if it is off by {found.noise_margin:.3f})",
        "  nothing was refuted; that is no proof",
    ]


def _membership_lines(attack: MembershipInference) -> list[str]:
    area = attack.area
    return [
        f"membership inference: area {area.value:.3f} ({area.low:.3f} to {area.high:.3f}) of "
        f"{attack.members} training against {attack.others} held-out patients; 0.5 tells nothing",
    ]
