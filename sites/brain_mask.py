"""A brain mask for a scan that comes without one: the only door to deepbet, an optional extra.

deepbet (Fisch et al., MIT licence) is a network with its weights inside the package, trained on T1
images of healthy adults. Its mask holds the outer CSF. Nothing is downloaded. A mask that the
hospital has drawn or checked is always better and always goes first.

It is given the T1 in memory, as float32: its own reading of files refuses small ones and uses other
rules than ``sites.reading``. Orientation is its affair (it turns the image to RAS and the mask
back); it resamples to its own grid, so that slices may be thick.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import nibabel
import numpy as np
import torch
from scipy.ndimage import binary_fill_holes

from iedn.errors import ScanError

from .reading import Finding, Volume

PACKAGE = "deepbet"
INSTALL = "pip install 'iedn[mask]'"

# It keeps the box of the image in hand in the object: one image at a time.
_in_use = threading.Lock()
# nibabel annotates only part of its calls; as Any it passes the strict checks.
_nibabel: Any = nibabel


def estimator() -> str:
    """Name and version of what makes masks; empty where it is not installed."""
    try:
        return f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError:
        return ""


def estimate_brain_mask(t1: Volume) -> Volume:
    """The brain in a T1, as 0 and 1 on the T1's voxels, with finding W212.

    Args:
        t1: a whole head; what is not finite counts as 0.

    Raises:
        ScanError: E211, deepbet is not installed, or it finds no brain.
    """
    head = np.nan_to_num(t1.array, nan=0.0, posinf=0.0, neginf=0.0)
    with _in_use, _one_thread():
        extractor = _extractor()
        try:
            _, mask, _ = extractor.run(_nibabel.Nifti1Image(head.T, t1.affine))
        # What its own code raises where there is nothing that could be a brain.
        except (AssertionError, ValueError, IndexError, RuntimeError) as error:
            problem = f"none given, and {PACKAGE} finds no brain in the T1 ({error}); draw one"
            raise ScanError("E211", problem) from error
    # A lesion can leave a hole in the mask; inside a brain there is none.
    inside = binary_fill_holes(np.asarray(mask.dataobj).T > 0)
    if not inside.any():
        raise ScanError("E211", f"none given, and {PACKAGE} finds no brain in the T1; draw one")
    problem = f"made from the T1 by {estimator()}, which knows healthy adults"
    array = np.ascontiguousarray(inside, dtype=np.float32)
    return replace(t1, array=array, warnings=(Finding("W212", problem),))


@contextmanager
def _one_thread() -> Iterator[None]:
    """The mask must not depend on how many scans are prepared at a time, not by a bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _extractor() -> Any:
    """Deepbet's network on the CPU, loaded once a process."""
    try:
        from deepbet.bet import BrainExtraction
    except ImportError as error:
        problem = f"missing; give one, or let {PACKAGE} make it: {INSTALL}"
        raise ScanError("E211", problem) from error
    with warnings.catch_warnings():
        # torch.jit.load, which it uses, is deprecated in torch 2.13 and works.
        warnings.simplefilter("ignore", DeprecationWarning)
        return BrainExtraction(no_gpu=True)
