"""Could somebody who holds a model and a patient's scans tell whether the patient trained it?

The simplest attack there is: a patient whose loss is low is taken for one that was in. Its area
under the ROC curve, of training patients against held-out ones, is 0.5 where the model gives
nothing away. Stronger attacks exist; the area is what the weakest attacker has. It never leaves
the site.
"""

from dataclasses import dataclass

import torch
from torch import Generator

from iedn.config import TrainingConfig
from iedn.errors import CohortError
from iedn.evaluation.auc import auc_interval
from iedn.evaluation.estimates import Estimate
from iedn.model import Network
from iedn.training import CPU
from sites.dataset import PreparedCohort, ScanDataset

from .privacy import PatientScans, scan_loss_of

_AS_IT_IS = TrainingConfig(keep_probability=1.0, flip_probability=0.0)


@dataclass(frozen=True)
class MembershipInference:
    """How well losses tell training patients from others.

    Attributes:
        members: training patients.
        others: held-out patients.
        area: under the ROC curve, with an interval over patients.
    """

    members: int
    others: int
    area: Estimate


def infer_membership(
    model: Network, cohort: PreparedCohort, *, device: torch.device = CPU
) -> MembershipInference:
    """Attack ``model`` with the losses of a site's own patients.

    Raises:
        CohortError: no training patient, or no held-out one.
    """
    inside = patient_losses(model, cohort.train, device=device)
    outside = [
        loss
        for dataset in (cohort.validation, cohort.test)
        for loss in patient_losses(model, dataset, device=device)
    ]
    if not inside or not outside:
        raise CohortError(
            f"membership inference compares training patients ({len(inside)}) with held-out ones "
            f"({len(outside)}); one of each is needed at least"
        )
    return membership_from(inside, outside)


def membership_from(inside: list[float], outside: list[float]) -> MembershipInference:
    """The attack's area, from losses of training patients and of others."""
    labels = [1] * len(inside) + [0] * len(outside)
    area = auc_interval(labels, [-loss for loss in (*inside, *outside)])
    return MembershipInference(len(inside), len(outside), area)


@torch.no_grad()
def patient_losses(
    model: Network, dataset: ScanDataset, *, device: torch.device = CPU
) -> list[float]:
    """Mean loss over the scans of each patient, as training computes it, with all modalities."""
    model.to(device).eval()
    scans = PatientScans.grouped(dataset, [record.patient_id for record in dataset.records])
    loss = scan_loss_of(model, dataset, _AS_IT_IS, device)
    unused = Generator()
    return [
        sum(float(loss(number, unused)) for number in numbers) / len(numbers)
        for numbers in scans.by_patient
    ]
