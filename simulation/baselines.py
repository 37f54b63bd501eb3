"""What a site could predict without a network: the bar that training has to clear.

Three predictors, each fitted on the site's own training scans and measured on the same held-out
scans with the same metrics as the network: the constant mean CBV, the mean CBV map, and
voxel-wise ridge regression from all modalities a scan has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from iedn.evaluation.metrics import evaluate_scan
from iedn.modalities import Modality
from iedn.sample import IednSample

Volume = NDArray[np.float32]


@dataclass(frozen=True)
class Ridge:
    """A fitted regression: the modalities it uses, and coefficients with the intercept last."""

    modalities: tuple[Modality, ...]
    coefficients: NDArray[np.float64]


RIDGE_PENALTY = 1.0


@dataclass(frozen=True)
class Quality:
    """Mean image quality over scans."""

    psnr_db: float
    ssim_percent: float


@dataclass(frozen=True)
class Baselines:
    """The predictors fitted on one site's training scans.

    Attributes:
        mean: mean training CBV inside the brain.
        mean_map: (D, H, W) voxel-wise mean of the training maps; 0 where no brain was.
        ridge: a regression by set of modalities of the scan to predict.
    """

    mean: float
    mean_map: Volume
    ridge: dict[tuple[Modality, ...], Ridge]


def fit(training: Sequence[IednSample], combinations: set[tuple[Modality, ...]]) -> Baselines:
    """Fit all predictors.

    Args:
        training: the site's training scans, of one shape.
        combinations: sets of modalities to fit a regression for; each is fitted on the training
            scans that have all of them. Where there is none, on all scans and those of the
            modalities that every training scan has.

    Raises:
        ValueError: a combination shares no modality with all training scans.
    """
    masks = np.stack([_mask(s) for s in training])
    maps = np.stack([_cbv(s) for s in training]) * masks
    covered = masks.sum(axis=0)
    mean_map = np.divide(maps.sum(axis=0), covered, where=covered > 0, out=np.zeros_like(maps[0]))
    return Baselines(
        mean=float(maps.sum() / masks.sum()),
        mean_map=mean_map,
        ridge={c: _fit_ridge(training, c) for c in combinations},
    )


def predict(baselines: Baselines, sample: IednSample) -> dict[str, Volume]:
    """Predictions (D, H, W) of one scan inside its brain mask, by predictor."""
    mask = _mask(sample)
    fitted = baselines.ridge[sample.modalities]
    features = np.stack([sample.images[m][0].numpy() for m in fitted.modalities], axis=-1)
    ridge = features @ fitted.coefficients[:-1] + fitted.coefficients[-1]
    return {
        "mean": mask * np.float32(baselines.mean),
        "mean map": mask * baselines.mean_map,
        "ridge": mask * np.clip(ridge, 0.0, None).astype(np.float32),
    }


def measure(baselines: Baselines, held_out: Sequence[IednSample]) -> dict[str, Quality]:
    """Mean quality of each predictor on held-out scans."""
    scores: dict[str, list[tuple[float, float]]] = {}
    for sample in held_out:
        for name, prediction in predict(baselines, sample).items():
            scan = evaluate_scan(_cbv(sample), prediction, _mask(sample) > 0)
            scores.setdefault(name, []).append((scan.psnr_db, scan.ssim_percent))
    return {
        name: Quality(fmean(p for p, _ in values), fmean(s for _, s in values))
        for name, values in scores.items()
    }


def _fit_ridge(training: Sequence[IednSample], modalities: tuple[Modality, ...]) -> Ridge:
    """Normal equations over all brain voxels; the intercept is not penalised."""
    usable = [s for s in training if set(modalities) <= set(s.images)]
    if not usable:
        usable = list(training)
        modalities = tuple(m for m in modalities if all(m in s.images for s in training))
    if not modalities:
        msg = "the training scans have no modality in common with the scan to predict"
        raise ValueError(msg)
    gram = np.zeros((len(modalities) + 1,) * 2)
    moment = np.zeros(len(modalities) + 1)
    for sample in usable:
        inside = _mask(sample) > 0
        columns = [sample.images[m][0].numpy()[inside] for m in modalities]
        design = np.stack([*columns, np.ones(int(inside.sum()))], axis=1).astype(np.float64)
        gram += design.T @ design
        moment += design.T @ _cbv(sample)[inside]
    penalty = RIDGE_PENALTY * np.eye(len(moment))
    penalty[-1, -1] = 0.0
    return Ridge(modalities, np.asarray(np.linalg.solve(gram + penalty, moment)))


def _mask(sample: IednSample) -> Volume:
    return np.asarray(sample.brain_mask[0].numpy(), dtype=np.float32)


def _cbv(sample: IednSample) -> Volume:
    if sample.cbv is None:
        msg = "the scan has no measured CBV"
        raise ValueError(msg)
    return np.asarray(sample.cbv[0].numpy(), dtype=np.float32)
