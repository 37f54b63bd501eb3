"""What a phantom cohort looks like: the site's scanner protocol and the patients.

A protocol is one scanner's habit (grid, noise, what is acquired); a cohort is how many patients
come, how often, and how hard the lesions are to tell apart.
"""

from typing import Any, ClassVar, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from iedn.config import FrozenModel
from iedn.modalities import Modality, in_order

Probability = float
LesionPreset = Literal["default", "hard"]
AslOutput = Literal["cbf", "4d"]


class _GrowingModel(FrozenModel):
    """A model whose later fields are written only where they differ from their default.

    A cohort is known by the digest of its configuration; a field that did not exist when the
    cohort was made must not make it another one.
    """

    later_fields: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_unused_later_fields(
        self, serialize: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        kept: dict[str, Any] = serialize(self)
        for name in self.later_fields:
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if getattr(self, name) == default:
                kept.pop(name, None)
        return kept


class SiteProtocol(_GrowingModel):
    """How a site scans.

    Attributes:
        rows: voxels along the second in-plane axis (y, the second axis of the NIfTI array).
        columns: voxels along the first in-plane axis (x).
        slices: number of slices (z).
        spacing_mm: in-plane voxel size of the structural images. ADC, ASL and CBV keep the field
            of view but have voxels no smaller than ``acquisition.FINEST_SPACING_MM``.
        slice_spacing_mm: distance between slice centres.
        slice_thickness_mm: full width at half maximum of the slice profile; 0 takes
            ``slice_spacing_mm``.
        orientation: ``RAS`` or ``LAS`` (first array axis runs to the patient's left).
        oblique_deg: tilt of the slices about the left-right axis.
        field: field strength, which sets the relaxation times.
        snr: mean brain signal / noise sd of the structural images.
        bias_sd: sd of the logarithm of the receive field.
        jitter_mm: sd of the head's shift between the images of one scan; the rotation has an sd
            of 0.6 degrees a millimetre.
        scale: factor from relative signal to stored structural intensity.
        dtype: ``int16`` stores with the NIfTI slope; ADC is int16 always.
        modalities: acquired images; T1WI always.
        missing_probability: how often an acquired modality is absent from a scan.
        misregistration_probability: how often the patient moves before a modality is acquired;
            T1WI is the reference and cannot be.
        misregistration_mm: length of that shift, in a random direction; the turn about each axis
            has an sd of 0.6 degrees a millimetre.
        asl_output: ``cbf`` is a map from the scanner; ``4d`` the series before any computation,
            one M0 volume and then control and label in turn.
        asl_pairs: control and label pairs of a series. The CBF computed from it is as noisy as the
            map would be, whatever their number.
        pld_s: post-labelling delay of ASL.
        has_cbv: the site measures CBV (DSC).
        cbv_scale: factor on the stored CBV; other than 1 for a scanner with arbitrary units.
        has_labels: the outcome (recurrence or treatment response) of each scan is known.
    """

    rows: int = Field(default=64, ge=16, le=512)
    columns: int = Field(default=64, ge=16, le=512)
    slices: int = Field(default=16, ge=4, le=256)
    spacing_mm: float = Field(default=3.4375, gt=0.3, le=14.0)
    slice_spacing_mm: float = Field(default=8.0, gt=0.3, le=20.0)
    slice_thickness_mm: float = Field(default=0.0, ge=0.0, le=20.0)
    orientation: Literal["RAS", "LAS"] = "RAS"
    oblique_deg: float = Field(default=0.0, ge=-30.0, le=30.0)
    field: Literal["1.5T", "3T"] = "3T"
    snr: float = Field(default=30.0, gt=0.0, le=1000.0)
    bias_sd: float = Field(default=0.1, ge=0.0, le=1.0)
    jitter_mm: float = Field(default=0.4, ge=0.0, le=10.0)
    scale: float = Field(default=900.0, gt=0.0, le=1e5)
    dtype: Literal["float32", "int16"] = "float32"
    modalities: tuple[Modality, ...] = tuple(Modality)
    missing_probability: dict[Modality, Probability] = Field(default_factory=dict)
    misregistration_probability: dict[Modality, Probability] = Field(default_factory=dict)
    misregistration_mm: float = Field(default=4.0, gt=0.0, le=30.0)
    asl_output: AslOutput = "cbf"
    asl_pairs: int = Field(default=8, ge=1, le=100)
    pld_s: float = Field(default=1.8, ge=0.0, le=5.0)
    has_cbv: bool = True
    cbv_scale: float = Field(default=1.0, gt=0.0, le=1e4)
    has_labels: bool = True

    later_fields: ClassVar[frozenset[str]] = frozenset(
        {
            "misregistration_probability",
            "misregistration_mm",
            "asl_output",
            "asl_pairs",
            "pld_s",
        }
    )

    @field_validator("modalities")
    @classmethod
    def _ordered_with_t1(cls, value: tuple[Modality, ...]) -> tuple[Modality, ...]:
        if Modality.T1WI not in value:
            msg = "T1WI is the reference grid and must be among the modalities"
            raise ValueError(msg)
        return in_order(value)

    @field_validator("missing_probability", "misregistration_probability")
    @classmethod
    def _probabilities(cls, value: dict[Modality, float]) -> dict[Modality, float]:
        if value.get(Modality.T1WI, 0.0) > 0.0:
            msg = "T1WI is the reference grid and cannot be missing or misregistered"
            raise ValueError(msg)
        if any(not 0.0 <= p <= 1.0 for p in value.values()):
            msg = "a probability is between 0 and 1"
            raise ValueError(msg)
        return {m: value[m] for m in in_order(value)}

    @property
    def slice_fwhm_mm(self) -> float:
        """Full width at half maximum of the slice profile."""
        return self.slice_thickness_mm or self.slice_spacing_mm


class PhantomCohort(_GrowingModel):
    """Who comes to the site.

    The ``default`` lesions were tuned so that true CBV separates the two outcomes about as well
    as in the paper; ``hard`` takes closer published group means and overlaps much more.

    Attributes:
        protocol: how the site scans.
        patients: number of patients.
        min_visits: fewest scans a patient.
        max_visits: most scans a patient; few patients have many.
        fraction_recurrence: share of patients that start as recurrence.
        change_probability: how often the outcome of a later visit differs from the one before.
        num_scans: exact number of scans of all patients; None leaves it to chance.
        num_recurrence: exact number of scans with recurrence, the others are treatment response;
            None leaves it to ``fraction_recurrence`` and ``change_probability``.
        lesions: preset of the lesion perfusion.
        adc_gap: difference of mean rim ADC, treatment response - recurrence, in 1e-3 mm2/s;
            0 leaves perfusion as the only difference between the outcomes.
    """

    protocol: SiteProtocol = Field(default_factory=SiteProtocol)
    patients: int = Field(ge=1, le=9999)
    min_visits: int = Field(default=1, ge=1, le=9)
    max_visits: int = Field(default=5, ge=1, le=9)
    fraction_recurrence: float = Field(default=0.5, ge=0.0, le=1.0)
    change_probability: float = Field(default=0.05, ge=0.0, le=1.0)
    lesions: LesionPreset = "default"
    adc_gap: float = Field(default=0.2, ge=-1.0, le=1.0)
    num_scans: int | None = Field(default=None, ge=1)
    num_recurrence: int | None = Field(default=None, ge=0)

    later_fields: ClassVar[frozenset[str]] = frozenset({"num_scans", "num_recurrence"})

    @model_validator(mode="after")
    def _visits_in_order(self) -> "PhantomCohort":
        if self.min_visits > self.max_visits:
            msg = f"min_visits {self.min_visits} is above max_visits {self.max_visits}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _counts_are_possible(self) -> "PhantomCohort":
        fewest, most = (self.patients * n for n in (self.min_visits, self.max_visits))
        if self.num_scans is not None and not fewest <= self.num_scans <= most:
            msg = f"num_scans {self.num_scans} is not within {fewest} to {most}, patients x visits"
            raise ValueError(msg)
        least = fewest if self.num_scans is None else self.num_scans
        if self.num_recurrence is not None and self.num_recurrence > least:
            msg = f"num_recurrence {self.num_recurrence} is above the number of scans, {least}"
            raise ValueError(msg)
        return self
