"""What the volumes of an ASL file are, read from the two files beside it.

``X_asl.nii.gz`` has its sidecar ``X_asl.json`` and its table ``X_aslcontext.tsv`` (BIDS); any other
name, such as ``ASL.nii.gz``, has ``ASL.json`` and ``aslcontext.tsv``. Without them a raw ASL file
cannot be told apart from a perfusion map, and its first volume is often a calibration or label
image: so nothing is guessed. Sidecars of a folder further up are not looked for.

The fields are those of BIDS; times are in seconds.
"""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeGuard

from iedn.errors import ScanError

AslKind = Literal["cbf", "deltam"]

VOLUME_TYPES = ("control", "label", "m0scan", "deltam", "cbf", "noRF", "n/a")
T1_BLOOD_S = {"3T": 1.65, "1.5T": 1.35}
"""Longitudinal relaxation of arterial blood (Alsop 2015)."""
EFFICIENCY = 0.85
"""Labelling efficiency of PCASL (Alsop 2015)."""

_NIFTI_ENDINGS = (".nii.gz", ".nii")
_BIDS_SUFFIX = "_asl"
_LONGEST_S = 10.0


@dataclass(frozen=True)
class AslPart:
    """Which volumes of an ASL file hold perfusion.

    Attributes:
        kind: ``cbf``, a perfusion map; ``deltam``, differences still to be calibrated.
        volume: the perfusion map, or the only difference; None where several are averaged.
        pld_s: post-labelling delay where the sidecar has one.
    """

    kind: AslKind
    volume: int | None
    pld_s: float | None


@dataclass(frozen=True)
class Labelling:
    """How a PCASL series was acquired, as far as its calibration needs it.

    Attributes:
        pld_s: from the end of labelling to the first slice.
        labelling_duration_s: how long blood was labelled.
        slice_times_s: delay of each slice after the first; empty for a 3D readout.
        t1_blood_s: T1 of arterial blood at the scanner's field.
        efficiency: of labelling.
        m0: where the calibration is: a volume of the same file, a file beside it, or a number.
        m0_estimate: the number.
    """

    pld_s: float
    labelling_duration_s: float
    slice_times_s: tuple[float, ...]
    t1_blood_s: float
    efficiency: float
    m0: Literal["Included", "Separate", "Estimate"]
    m0_estimate: float | None


def sidecar_path(image: Path) -> Path:
    """The JSON file beside the image."""
    return image.with_name(f"{image_stem(image)}.json")


def context_path(image: Path) -> Path:
    """The table of volume types beside the image."""
    stem = image_stem(image)
    name = f"{stem}context.tsv" if stem.endswith(_BIDS_SUFFIX) else "aslcontext.tsv"
    return image.with_name(name)


def m0_path(image: Path) -> Path:
    """The separate calibration image beside the image, ``.nii.gz`` if there are both."""
    stem = image_stem(image)
    base = f"{stem.removesuffix(_BIDS_SUFFIX)}_" if stem.endswith(_BIDS_SUFFIX) else ""
    plain = image.with_name(f"{base}m0scan.nii")
    return plain if plain.is_file() else image.with_name(f"{base}m0scan.nii.gz")


def companions(image: Path) -> tuple[Path, ...]:
    """All files beside the image that decide what becomes of it, there or not."""
    return sidecar_path(image), context_path(image), m0_path(image)


def image_stem(image: Path) -> str:
    """The file's name without ``.nii`` or ``.nii.gz``."""
    for ending in _NIFTI_ENDINGS:
        if image.name.lower().endswith(ending):
            return image.name[: -len(ending)]
    return image.stem


def volume_types(image: Path) -> tuple[str, ...]:
    """The type of every volume of the image, in their order.

    Raises:
        ScanError: E201, the table is missing, unreadable or has another word.
    """
    path = context_path(image)
    if not path.is_file():
        raise ScanError("E201", f"no {path.name} beside it says which volume is the perfusion map")
    try:
        rows = list(csv.DictReader(path.read_text("utf-8-sig").splitlines(), delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ScanError("E201", f"{path.name} cannot be read: {error}") from error
    types = tuple((row.get("volume_type") or "").strip() for row in rows)
    wrong = sorted(set(types) - set(VOLUME_TYPES))
    if wrong or not types:
        allowed = f"one column volume_type of {', '.join(VOLUME_TYPES)}"
        raise ScanError("E201", f"{path.name} has {wrong or 'no rows'}. Allowed: {allowed}")
    return types


def asl_part(image: Path, num_volumes: int) -> AslPart:
    """Which volumes to use, as sidecar and table say.

    Raises:
        ScanError: E201, no single perfusion map, and the differences cannot be calibrated.
    """
    types = volume_types(image)
    if len(types) != num_volumes:
        problem = f"{num_volumes} volumes, but {context_path(image).name} has {len(types)} rows"
        raise ScanError("E201", problem)
    if types.count("cbf") == 1:
        return AslPart("cbf", types.index("cbf"), _pld_if_known(image))
    if "cbf" in types:
        problem = f"{types.count('cbf')} cbf volumes; name one in the manifest's column asl_volume"
        raise ScanError("E201", problem)
    labelling = load_labelling(image, types)
    volume = types.index("deltam") if types.count("deltam") == 1 else None
    return AslPart("deltam", volume, labelling.pld_s)


def load_labelling(image: Path, types: tuple[str, ...]) -> Labelling:
    """The acquisition of a series with differences or pairs, complete or refused.

    Raises:
        ScanError: E201, the sidecar is missing or a field is missing or of no use; the message
            names field, value and what is allowed.
    """
    _check_pairs(types)
    return _Sidecar(sidecar_path(image)).labelling(image, types)


def _check_pairs(types: tuple[str, ...]) -> None:
    controls, labels = types.count("control"), types.count("label")
    if "deltam" not in types and (controls == 0 or controls != labels):
        problem = f"{controls} control and {labels} label volumes: no pairs, and no cbf or deltam"
        raise ScanError("E201", problem)


def _pld_if_known(image: Path) -> float | None:
    """The delay of a finished map only describes it: where it is missing, the map is as good."""
    if not sidecar_path(image).is_file():
        return None
    value = _Sidecar(sidecar_path(image)).fields.get("PostLabelingDelay")
    return float(value) if _is_number(value) and 0.0 <= value <= _LONGEST_S else None


class _Sidecar:
    """One JSON sidecar; a field that cannot be used raises E201."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        if not path.is_file():
            raise ScanError("E201", f"no {path.name} beside it; it is needed to compute CBF")
        try:
            fields = json.loads(path.read_text("utf-8-sig"))
        except (OSError, ValueError) as error:
            raise ScanError("E201", f"{path.name} cannot be read: {error}") from error
        if not isinstance(fields, dict):
            raise ScanError("E201", f"{path.name} holds no JSON object")
        self.fields: Mapping[str, Any] = fields

    def labelling(self, image: Path, types: tuple[str, ...]) -> Labelling:
        self._choice("ArterialSpinLabelingType", ("PCASL",))
        m0 = self._choice("M0Type", ("Included", "Separate", "Estimate"))
        if m0 == "Included" and "m0scan" not in types:
            self._refuse("M0Type", f"another word, as no volume of {image.name} is m0scan")
        if m0 == "Separate" and not m0_path(image).is_file():
            self._refuse("M0Type", f"another word, as there is no {m0_path(image).name} beside it")
        return Labelling(
            pld_s=self._seconds("PostLabelingDelay"),
            labelling_duration_s=self._seconds("LabelingDuration"),
            slice_times_s=self._slice_times(),
            t1_blood_s=T1_BLOOD_S["1.5T" if self._field_strength() < 2.0 else "3T"],
            efficiency=self._number("LabelingEfficiency", EFFICIENCY, most=1.0),
            m0=m0,
            m0_estimate=self._number("M0Estimate", None) if m0 == "Estimate" else None,
        )

    def _refuse(self, key: str, allowed: str) -> NoReturn:
        value = self.fields.get(key, "nothing")
        raise ScanError("E201", f"{self._name}: {key} is {value!r}. Allowed: {allowed}")

    def _choice(self, key: str, allowed: tuple[str, ...]) -> Any:
        value = self.fields.get(key)
        if value not in allowed:
            self._refuse(key, ", ".join(allowed))
        return value

    def _seconds(self, key: str) -> float:
        """One time for all volumes; a list is fine as long as it repeats one value."""
        value: Any = self.fields.get(key)
        times: list[Any] = value if isinstance(value, list) and value else [value]
        if not all(_is_number(t) and 0.0 <= t <= _LONGEST_S for t in times):
            self._refuse(key, f"a number of seconds above 0, at most {_LONGEST_S:g}")
        # The calibration volume has neither delay nor labelling and is listed with 0.
        different = {float(t) for t in times if t > 0.0}
        if len(different) != 1:
            self._refuse(key, "one time above 0 for all volumes (several delays are not supported)")
        return different.pop()

    def _number(self, key: str, default: float | None, most: float = 1e12) -> float:
        value = self.fields.get(key, default)
        if not _is_number(value) or not 0.0 < value <= most:
            self._refuse(key, f"a number above 0, at most {most:g}")
        return float(value)

    def _field_strength(self) -> float:
        return self._number("MagneticFieldStrength", 3.0, most=20.0)

    def _slice_times(self) -> tuple[float, ...]:
        if self.fields.get("MRAcquisitionType") != "2D":
            return ()
        times: Any = self.fields.get("SliceTiming")
        if not isinstance(times, list) or not times or not all(_is_number(t) for t in times):
            self._refuse("SliceTiming", "a list of seconds, one a slice, for a 2D readout")
        if self.fields.get("SliceEncodingDirection", "k") != "k":
            self._refuse("SliceEncodingDirection", "k (slices along the file's third axis)")
        return tuple(float(t) - min(times) for t in times)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
