"""One patient's scans: anatomy once, then lesion, images and truth of every visit."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iedn.modalities import BRAIN_MASK, TARGET, Modality

from .acquisition import ASL_NOISE_PER_STRUCTURAL, Sampler, finish, scan_grid
from .anatomy import Anatomy, head_lattice, make_anatomy
from .config import PhantomCohort, SiteProtocol
from .dsc import SAME_CURVE, baseline_weight, measure_cbv
from .fields import Volume
from .labelling import M0_REPETITION_S, asl_context, asl_sidecar, label_series, repetition_s
from .latents import PatientPlan, VisitLatents, draw_visits
from .lesion import LesionShape, LesionTexture, draw_shape, draw_texture, with_lesion
from .motion import HeadShift, Matrix, misregistrations, rigid_motion
from .nifti import write_volume
from .signals import (
    Head,
    asl_difference_image,
    cbv_of,
    ideal_image,
    saturation_recovery,
    true_cbf,
)
from .streams import Draw, stream
from .tissue import BRAIN_TISSUES, Tissue, TissueTable, tissue_table

LESION_MASK = "lesion_mask"
POSE_SD_MM = 1.5
"""How differently a patient lies in the scanner from visit to visit."""
RIM_LEAST_FRACTION = 0.4
INSIDE_BRAIN = (*BRAIN_TISSUES, Tissue.CSF)


@dataclass(frozen=True)
class Visit:
    """All that is needed to scan one visit.

    Attributes:
        protocol: how the site scans.
        seed: the cohort's seed.
        patient: the patient's number.
        number: the visit's number, from 1.
        anatomy: the healthy head.
        head: the head with its lesion.
        table: tissue constants, with this visit's rim.
        pose: 4 x 4, position of the head in the scanner.
        moved: how the patient moved before some of the images.
    """

    protocol: SiteProtocol
    seed: int
    patient: int
    number: int
    anatomy: Anatomy
    head: Head
    table: TissueTable
    pose: Matrix
    moved: dict[Modality, HeadShift]

    def rng(self, draw: Draw) -> np.random.Generator:
        """The random stream of one thing at this visit."""
        return stream(self.seed, draw, self.patient, self.number)

    def sampler(self, image: str, motion: Matrix | None = None) -> Sampler:
        """Sampler of one image; without ``motion`` the head lies as during T1WI."""
        pose = self.pose if motion is None else motion @ self.pose
        return Sampler(self.anatomy.lattice, scan_grid(self.protocol, image), pose)


def _head(anatomy: Anatomy, fractions: Volume, texture: LesionTexture) -> Head:
    rim = 0.25 * fractions[Tissue.RIM] * texture.perfusion
    return Head(
        fractions,
        cbv_factor=np.clip(anatomy.cbv_factor + rim, 0.3, None),
        cbf_factor=np.clip(anatomy.cbf_factor + rim, 0.3, None),
        att_factor=anatomy.att_factor,
    )


def _image_sampler(visit: Visit, modality: Modality, rng: np.random.Generator) -> Sampler:
    """Sampler of a modality's image with its motion, which is drawn from ``rng``."""
    motion = rigid_motion(rng, visit.protocol.jitter_mm)
    if modality is Modality.T1WI:
        return visit.sampler(modality)
    if modality in visit.moved:
        motion = visit.moved[modality].matrix @ motion
    return visit.sampler(modality, motion)


def _brain_mean(visit: Visit, volume: Volume) -> float:
    return float(volume[visit.anatomy.distance_mm < 0.0].mean())


def _scan_image(visit: Visit, modality: Modality) -> Volume:
    rng = visit.rng(Draw.image(modality))
    sampler = _image_sampler(visit, modality, rng)
    ideal = ideal_image(visit.head, visit.table, modality, pld_s=visit.protocol.pld_s)
    site = (visit.protocol, sampler.grid)
    return finish(sampler.sample(ideal), _brain_mean(visit, ideal), modality, site, rng)


def _scan_label_series(visit: Visit) -> Volume:
    """The 4D ASL series (X, Y, Z, volume)."""
    rng, protocol = visit.rng(Draw.ASL), visit.protocol
    sampler = _image_sampler(visit, Modality.ASL, rng)
    m0, control = (
        saturation_recovery(visit.head, visit.table, tr_s)
        for tr_s in (M0_REPETITION_S, repetition_s(protocol))
    )
    difference = asl_difference_image(visit.head, visit.table, protocol.pld_s)
    cbf = ideal_image(visit.head, visit.table, Modality.ASL, pld_s=protocol.pld_s)
    cbf_sd = ASL_NOISE_PER_STRUCTURAL * _brain_mean(visit, cbf) / protocol.snr
    sampled = (sampler.sample(m0), sampler.sample(control), sampler.sample(difference))
    return label_series(sampled, (cbf_sd, _brain_mean(visit, m0)), protocol, rng)


def _scan_cbv(visit: Visit) -> Volume:
    rng = visit.rng(Draw.CBV)
    sampler = visit.sampler(TARGET, rigid_motion(rng, visit.protocol.jitter_mm))
    blood = {
        curve: sampler.sample(cbv_of(visit.head, visit.table, tissues))
        for curve, tissues in SAME_CURVE.items()
    }
    weights = np.array([baseline_weight(visit.table, t) for t in Tissue], dtype=np.float32)
    baseline = sampler.sample(np.tensordot(weights, visit.head.fractions, axes=1))
    return measure_cbv(blood, baseline, visit.table, rng) * np.float32(visit.protocol.cbv_scale)


def _masks(visit: Visit) -> dict[str, NDArray[np.bool_]]:
    """Brain mask, and the enhancing rim as lesion mask, on the grid of T1WI."""
    sampler = visit.sampler(Modality.T1WI)
    brain = sampler.sample((visit.anatomy.distance_mm < 0.0).astype(np.float32))
    rim = sampler.sample(visit.head.fractions[Tissue.RIM])
    least = min(RIM_LEAST_FRACTION, 0.6 * float(rim.max()))
    return {BRAIN_MASK: brain >= 0.5, LESION_MASK: rim >= least}


def present_modalities(protocol: SiteProtocol, rng: np.random.Generator) -> tuple[Modality, ...]:
    """The modalities one scan has; a draw is made for all six, so that none moves another."""
    draws = dict(zip(Modality, rng.random(len(Modality)), strict=True))
    absent = protocol.missing_probability
    return tuple(m for m in protocol.modalities if draws[m] >= absent.get(m, 0.0))


def _write_visit(folder: Path, visit: Visit) -> dict[str, str]:
    """Write one visit; gives the manifest's cells, paths relative to ``folder``."""
    scan = Path(f"sub-{visit.patient:04d}") / f"visit-{visit.number}"
    dtype = _stored_type(visit.protocol)
    cells: dict[str, str] = {}

    def write(name: str, volume: NDArray[np.generic], stored: type[np.generic]) -> None:
        path = scan / f"{name}.nii.gz"
        write_volume(folder / path, volume, scan_grid(visit.protocol, name), stored)
        cells[name] = path.as_posix()

    for modality in present_modalities(visit.protocol, visit.rng(Draw.MISSING)):
        if modality is Modality.ASL and visit.protocol.asl_output == "4d":
            cells |= _write_label_series(folder, scan, visit)
            continue
        stored = np.int16 if modality is Modality.ADC else dtype
        write(modality, _scan_image(visit, modality), stored)
    if visit.protocol.has_cbv:
        write(TARGET, _scan_cbv(visit), dtype)
    for name, mask in _masks(visit).items():
        write(name, mask, np.uint8)
    _write_truth(folder / "truth" / scan, visit)
    return cells


def _write_label_series(folder: Path, scan: Path, visit: Visit) -> dict[str, str]:
    """Write the ASL series and, beside it, what its volumes are; gives the manifest's cells."""
    protocol, path = visit.protocol, scan / f"{Modality.ASL}.nii.gz"
    write_volume(
        folder / path,
        _scan_label_series(visit),
        scan_grid(protocol, Modality.ASL),
        _stored_type(protocol),
        repetition_s=repetition_s(protocol),
    )
    (folder / scan / "aslcontext.tsv").write_text(asl_context(protocol), encoding="utf-8")
    _write_json(folder / scan / f"{Modality.ASL}.json", asl_sidecar(protocol))
    return {Modality.ASL: path.as_posix(), "asl_kind": "deltam", "pld_s": f"{protocol.pld_s:g}"}


def _stored_type(protocol: SiteProtocol) -> type[np.generic]:
    return np.float32 if protocol.dtype == "float32" else np.int16


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_truth(folder: Path, visit: Visit) -> None:
    sampler = visit.sampler(Modality.T1WI)
    truths = {
        "CBV": cbv_of(visit.head, visit.table, tuple(Tissue)),
        "CBF": true_cbf(visit.head, visit.table),
    }
    for name, truth in truths.items():
        write_volume(folder / f"{name}.nii.gz", sampler.sample(truth), sampler.grid, np.float32)
    if visit.moved:
        moved = {modality.value: asdict(shift) for modality, shift in visit.moved.items()}
        _write_json(folder / "misregistration.json", moved)


def _visit(
    cohort: PhantomCohort,
    seed: int,
    place: tuple[int, int],
    lesion: tuple[LesionShape, LesionTexture, VisitLatents],
    anatomy: Anatomy,
) -> Visit:
    patient, number = place
    shape, texture, latents = lesion
    fractions = with_lesion(anatomy, shape, texture, latents.radius_mm)
    return Visit(
        protocol=cohort.protocol,
        seed=seed,
        patient=patient,
        number=number,
        anatomy=anatomy,
        head=_head(anatomy, fractions, texture),
        table=tissue_table(cohort.protocol.field, latents.rim),
        pose=rigid_motion(stream(seed, Draw.POSE, patient, number), POSE_SD_MM),
        moved=misregistrations(
            cohort.protocol, stream(seed, Draw.MISREGISTRATION, patient, number)
        ),
    )


def write_patient(
    folder: Path, cohort: PhantomCohort, plan: PatientPlan, seed: int
) -> list[dict[str, str]]:
    """Write all scans of one patient.

    Args:
        folder: the cohort's folder.
        cohort: what is scanned and how.
        plan: the patient.
        seed: the cohort's seed.

    Returns:
        One manifest row a visit.
    """
    lattice = head_lattice(cohort.protocol.spacing_mm)
    anatomy = make_anatomy(seed, plan.number, lattice)
    shape = draw_shape(seed, plan.number)
    texture = draw_texture(seed, plan.number, lattice)
    rows = []
    latents = draw_visits(cohort, plan, seed, shape.radius_mm)
    for number, visit_latents in enumerate(latents, start=1):
        lesion = (shape, texture, visit_latents)
        visit = _visit(cohort, seed, (plan.number, number), lesion, anatomy)
        row = {"patient_id": f"sub-{plan.number:04d}", "scan_id": f"visit-{number}"}
        label = {"label": visit_latents.outcome.value} if cohort.protocol.has_labels else {}
        rows.append({**row, **label, **_write_visit(folder, visit)})
    return rows
