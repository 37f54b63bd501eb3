"""The site's page: everything in one file, numbers as computed, and marked for who may see it."""

import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from client.site_report import ModelResults, render
from client.site_results import (
    Example,
    LesionPair,
    MeasuredResults,
    measure_held_out,
    validation_rounds,
)
from iedn.config import PRESETS
from iedn.errors import CohortError
from iedn.evaluation.statistics import bland_altman, concordance, roc_curve
from iedn.modalities import Modality
from iedn.sample import BRAIN_MEAN
from sites.cohort import ScanRecord
from sites.config import SiteConfig
from sites.metrics_release import ScanRow
from sites.preprocessing import Frame, Geometry, PreparedScan
from sites.report import CohortReport, Flow, Part, ReportedFinding, characteristics

SHAPE = (4, 24, 24)
VOID = {"meta", "img", "br"}


class Tags(HTMLParser):
    """Opens and closes of a page; every tag that is opened must be closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses = [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def assert_self_contained(page):
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.addresses
    assert all(address.startswith(("data:image/", "#")) for address in tags.addresses)
    assert not re.search(r"<script|@import|url\(|<link|<iframe", page)


def frame():
    return Frame(SHAPE, np.diag([5.5, 5.5, 8.0, 1.0]))


def scan():
    rng = np.random.default_rng(0)
    mask = np.zeros(SHAPE, np.float32)
    mask[:, 4:20, 4:20] = 1
    region = np.zeros(SHAPE, np.float32)
    region[2, 8:11, 6:9] = 1
    images = {Modality.T1WI: (mask * rng.random(SHAPE)).astype(np.float32)}
    return PreparedScan(
        images=images,
        brain_mask=mask,
        geometry=Geometry(frame(), frame(), frame().affine),
        cbv=(mask * 2 * BRAIN_MEAN * rng.random(SHAPE)).astype(np.float32),
        regions={"lesion_mask": region},
    )


def report():
    records = [
        ScanRecord(f"sub-{n:04d}", "ses-1", {Modality.T1WI: "t1.nii.gz"}, label="recurrence")
        for n in range(7)
    ]
    part = Part(7, 7, {"T1WI": 7})
    flow = Flow(
        listed=12,
        excluded={"motion <strong>": 3},
        quarantined={"E301": 2},
        usable=7,
        without_cbv=1,
        files_refused={},
    )
    found = ReportedFinding("E301", "error", "sub-0009/ses-1", "T1WI", "the same voxels", "Remove.")
    names = ("train", "validation", "test", "all usable")
    return CohortReport(
        site="site-a",
        role="train",
        parts=dict.fromkeys(names, part),
        flow=flow,
        characteristics={name: characteristics(records) for name in names},
        findings=(found,),
    )


def results():
    lesions = [LesionPair(f"sub-{n:04d}", 1.5 + n / 10, 1.4 + n / 8) for n in range(6)]
    columns = (
        [p.synthetic for p in lesions],
        [p.measured for p in lesions],
        [p.patient_id for p in lesions],
    )
    rows = tuple(
        ScanRow(f"sub-{n:04d}", "ses-1", frozenset({Modality.T1WI}), {"psnr_db": 20.0 + n})
        for n in range(6)
    )
    one = scan()
    return MeasuredResults(
        rows=rows,
        summary={"psnr_db_mean": 22.5, "psnr_db_sd": 1.5, "ssim_percent_mean": 71.25},
        lesions=tuple(lesions),
        agreement=bland_altman(*columns),
        concordance=concordance(*columns),
        examples=(Example("sub-0003/ses-1", one, one.cbv),),
    )


class File:
    """The facts of a model file that a page shows."""

    round_number, model_hash = 7, "d" * 64
    metadata = {"trained_on": "phantom (simulation)"}  # noqa: RUF012  (never changed)


def config(tmp_path):
    return SiteConfig(name="site-a", manifest=tmp_path / "manifest.csv", folder=tmp_path)


def page(tmp_path, *, is_phantom=False, with_results=True):
    measured = results()
    found = ModelResults(File(), measured, None, measured.examples) if with_results else None
    return render(config(tmp_path), report(), found, is_phantom=is_phantom)


def test_page_of_a_site_with_measured_cbv(tmp_path):
    found = page(tmp_path)
    assert_self_contained(found)
    assert "<b>12</b> scans in the manifest" in found
    assert "3 motion &lt;strong&gt;" in found  # text of a manifest is never markup
    assert "<b>1</b> without usable measured CBV" in found
    assert "22.50 ± 1.50" in found
    # Differences 0.1 - n / 40 for n = 0 ... 5: bias 0.1 - 2.5 / 40 = 0.0375.
    assert "Bias 0.037" in found or "Bias 0.038" in found
    assert found.count("data:image/png") == 1  # the one example
    assert "holds patient data" in found
    assert "the same voxels" in found


def test_page_of_a_phantom_says_so(tmp_path):
    found = page(tmp_path, is_phantom=True)
    assert "Phantom." in found
    assert "(PHANTOM)" in found
    assert "holds patient data" not in found


def test_page_without_a_model_is_about_the_cohort(tmp_path):
    found = page(tmp_path, with_results=False)
    tags = Tags()
    tags.feed(found)
    assert tags.open == []
    assert "data:image" not in found
    assert "Who is in the cohort" in found


def test_validation_rounds_are_means_of_the_tables(tmp_path):
    for number, values in ((2, (20.0, 22.0)), (10, (23.0, 24.0))):
        lines = [f"sub-{i:04d},ses-1,{v},{'' if i else 0.5}" for i, v in enumerate(values)]
        path = tmp_path / f"evaluation-validation-round-{number:04d}.csv"
        path.write_text("\n".join(["patient_id,scan_id,psnr_db,lesion_error", *lines]) + "\n")
    assert validation_rounds(tmp_path) == [
        (2, {"psnr_db": 21.0, "lesion_error": 0.5}),
        (10, {"psnr_db": 23.5, "lesion_error": 0.5}),
    ]


class Dataset:
    """Held-out scans without files."""

    def __init__(self, scans, records):
        self.records, self._scans = records, scans

    def __len__(self):
        return len(self._scans)

    def prepared(self, index):
        return self._scans[index]


def test_held_out_scans_are_measured_and_one_a_patient_is_shown(tmp_path):
    from iedn.model import build_network

    network = build_network(PRESETS["tiny"].network, 0)
    records = [ScanRecord("sub-0001", f"ses-{n}", {}) for n in (1, 2)] + [
        ScanRecord("sub-0002", "ses-1", {})
    ]
    dataset = Dataset([scan()] * 3, records)
    found = measure_held_out(config(tmp_path), network, dataset, examples=5, flip_average=False)
    assert [example.name for example in found.examples] == ["sub-0001/ses-1", "sub-0002/ses-1"]
    assert (len(found.rows), found.num_patients) == (3, 2)
    # The same scan three times: one metric, and no spread.
    assert found.summary["psnr_db_sd"] == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(CohortError, match="no held-out scan"):
        measure_held_out(config(tmp_path), network, Dataset([], []), examples=1, flip_average=False)


def test_roc_curve_by_hand_and_its_trapezoids_are_the_area():
    # Positives 3, 2; negatives 2, 1: pairs 3>2, 3>1, 2=2 (one half), 2>1: area 3.5 / 4.
    points = roc_curve([1, 1, 0, 0], [3.0, 2.0, 2.0, 1.0])
    assert points == ((0.0, 0.0), (0.0, 0.5), (0.5, 1.0), (1.0, 1.0))
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    assert area == pytest.approx(3.5 / 4)
