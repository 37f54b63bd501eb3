"""The MNI152 2009a average brain that nilearn ships inside its wheel.

Only three files are read; nilearn itself is not imported, which would cost seconds and pull in
scikit-learn. It is an optional extra, looked for when a phantom is made and not before.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its documentation uses

from iedn.errors import ConfigError

from .fields import Volume

# SimpleITK's functions are not annotated; as Any they pass the strict checks.
_signed_distance: Any = sitk.SignedMaurerDistanceMap

TEMPLATE_FILE = "mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"


@dataclass(frozen=True)
class Template:
    """The average brain at 1 mm, arrays (x, y, z) in RAS.

    Attributes:
        origin_mm: MNI coordinate of voxel (0, 0, 0).
        maps: (3, X, Y, Z), looked up together: probability of grey matter, of white matter
            (0..1), and signed distance to the brain's surface in mm, negative inside.
    """

    origin_mm: tuple[float, float, float]
    maps: Volume

    @property
    def wm(self) -> Volume:
        """Probability of white matter (X, Y, Z)."""
        return np.asarray(self.maps[1])

    @property
    def distance_mm(self) -> Volume:
        """Signed distance to the brain's surface (X, Y, Z)."""
        return np.asarray(self.maps[2])


def template_folder() -> Path:
    """Folder of the template files inside the installed nilearn.

    Raises:
        ConfigError: nilearn is not installed.
    """
    spec = find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        msg = "the phantom needs the MNI152 maps bundled in nilearn: pip install 'iedn[phantom]'"
        raise ConfigError(msg)
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data"


def _read(kind: str) -> tuple[Volume, tuple[float, float, float]]:
    path = template_folder() / TEMPLATE_FILE.format(kind=kind)
    if not path.is_file():
        raise ConfigError("the installed nilearn has no MNI152 map", where=path.name)
    image: Any = nibabel.load(path)
    x, y, z = (float(v) for v in image.affine[:3, 3])
    return np.ascontiguousarray(image.dataobj, dtype=np.float32), (x, y, z)


def _surface_distance(brain: Volume) -> Volume:
    mask = sitk.GetImageFromArray((brain > 0.0).astype(np.uint8))
    distance = _signed_distance(
        mask, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
    )
    return np.asarray(sitk.GetArrayFromImage(distance), dtype=np.float32)


@lru_cache(maxsize=1)
def load_template() -> Template:
    """The template, read once a process.

    Raises:
        ConfigError: nilearn or its maps are not installed.
    """
    brain, origin_mm = _read("t1")
    gm, wm = (_read(kind)[0] / np.float32(255.0) for kind in ("gm", "wm"))
    return Template(origin_mm, np.stack([gm, wm, _surface_distance(brain)], axis=0))
