"""A small reader study of made-up images, for the tests of the page and of its parts.

Every head is an ellipsoid with one bright lesion on the patient's LEFT and nothing on the right.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from client.rating.enrolment import enrol
from client.rating.study import Design
from client.rating.writing import CaseImages, write_study

SHAPE = (12, 48, 48)
SPACING_MM = (5.0, 4.0, 4.0)
# The grid of prepared scans: x from right to left, y from front to back, z upwards.
AFFINE = np.array([[-4.0, 0, 0, 94], [0, -4.0, 0, 94], [0, 0, 5.0, -27.5], [0, 0, 0, 1]])
LESION_MM = (-40.0, 0.0, 0.0)
STRUCTURAL = ("T1WI", "T2WI", "FLAIR", "ADC", "T1_C")
START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


class Clock:
    """A time that stands still until it is moved."""

    def __init__(self, now=START):
        self.time = now

    def __call__(self):
        return self.time

    def forward(self, **delta):
        self.time += timedelta(**delta)


def millimetres():
    z, y, x = np.indices(SHAPE)
    return [AFFINE[i, 0] * x + AFFINE[i, 1] * y + AFFINE[i, 2] * z + AFFINE[i, 3] for i in range(3)]


def head(lesion=0.0, texture=0.0, seed=0):
    """Brain 0.25 (the network's scale), lesion on the patient's left, grain inside the brain."""
    x, y, z = millimetres()
    brain = (x / 72) ** 2 + (y / 84) ** 2 + (z / 40) ** 2 < 1
    distance = sum((a - b) ** 2 for a, b in zip((x, y, z), LESION_MM, strict=True))
    grain = np.random.default_rng(seed).normal(0, texture, SHAPE)
    values = np.where(brain, 0.25 + lesion * np.exp(-distance / 300) + grain, 0.0)
    return np.clip(values, 0, None).astype(np.float32), brain.astype(np.float32)


def case(number, kind="quality", structural=STRUCTURAL):
    images = {}
    for offset, name in enumerate(structural):
        images[name], mask = head(0.1 * offset, 0.02, 10 * number + offset)
    images["sCBV"], _ = head(0.6, 0.02, 10 * number + 7)
    images["CBV" if kind == "quality" else "ASL"], _ = head(0.5, 0.05, 10 * number + 8)
    return CaseImages(f"sub-{number + 1:04}/ses-01", images, mask, AFFINE)


def make(folder: Path, *, num_cases=3, structural=STRUCTURAL, **design):
    """A study and its folder."""
    design = Design(name="trial", seed=7, **design)
    cases = [case(number, design.kind, structural) for number in range(num_cases)]
    return write_study(folder, design, cases, model_hash="ab" * 32)


def tokens(folder, *, adjudicator=False, now=START):
    """Two readers, and who decides: name -> token."""
    found = {n: enrol(folder, n, "reader", renew=False, now=now) for n in ("reader-1", "reader-2")}
    if adjudicator:
        found["reader-3"] = enrol(folder, "reader-3", "adjudicator", renew=False, now=now)
    return found
