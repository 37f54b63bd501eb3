"""CBF from raw ASL: the formula against the model it inverts, and what is refused."""

import json
import math
from pathlib import Path

import nibabel
import numpy as np
import pytest

from iedn.config import GridConfig
from iedn.errors import ScanError
from iedn.modalities import Modality
from sites.asl import cbf_from_deltam, read_raw_asl
from sites.asl_context import asl_part
from sites.cache import cache_key
from sites.cohort import ScanRecord
from sites.preprocessing import prepare_scan

AFFINE = np.diag([4.0, 4.0, 8.0, 1.0])
SHAPE = (6, 5, 4)
COMPLETE = {
    "ArterialSpinLabelingType": "PCASL",
    "PostLabelingDelay": 1.8,
    "LabelingDuration": 1.8,
    "M0Type": "Included",
}
CBF = np.linspace(5.0, 90.0, math.prod(SHAPE)).reshape(SHAPE)
M0 = np.linspace(800.0, 1200.0, math.prod(SHAPE)).reshape(SHAPE)


def buxton(cbf, m0, *, pld, att, tau=1.8, t1_app=1.65, alpha=0.85):
    """Difference signal of PCASL, Buxton 1998, read after all label has arrived."""
    assert att <= pld
    f = cbf / 6000.0
    k = 2.0 * (m0 / 0.9) * alpha * f * t1_app * math.exp(-att / 1.65)
    return k * np.exp(-(pld - att) / t1_app) * (1.0 - math.exp(-tau / t1_app))


def series(folder: Path, volumes: dict[str, np.ndarray], sidecar: dict | None = None) -> Path:
    """A BIDS ASL file with its table; the keys' first words are the volume types."""
    path = folder / "sub-0001_asl.nii.gz"
    image = np.stack(list(volumes.values()), axis=-1).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(image, AFFINE), path)
    rows = ["volume_type", *(key.split()[0] for key in volumes)]
    (folder / "sub-0001_aslcontext.tsv").write_text("\n".join(rows) + "\n")
    if sidecar is not None:
        (folder / "sub-0001_asl.json").write_text(json.dumps(sidecar))
    return path


def cbf_of(volume) -> np.ndarray:
    """In the file's own axis order."""
    return volume.array.T


@pytest.mark.parametrize("att", [0.0, 0.9, 1.8])
@pytest.mark.parametrize(("pld", "tau"), [(1.8, 1.8), (2.0, 1.5)])
def test_the_formula_inverts_the_model_where_all_label_has_arrived(att, pld, tau):
    deltam = buxton(CBF, M0, pld=pld, att=min(att, pld), tau=tau)
    found = cbf_from_deltam(deltam, M0, pld_s=pld, labelling_duration_s=tau)
    np.testing.assert_allclose(found, CBF, rtol=1e-5)


def test_one_value_by_hand():
    # 6000 * .9 * .01 * e^(1.8/1.65) / (2 * .85 * 1.65 * (1 - e^(-1.8/1.65)))
    # = 54 * 2.97715 / (2.805 * 0.664108) = 160.766 / 1.862823 = 86.302
    one = np.ones((1, 1, 1), dtype=np.float32)
    found = cbf_from_deltam(0.01 * one, one, pld_s=1.8, labelling_duration_s=1.8)
    np.testing.assert_allclose(found, 86.302, rtol=1e-4)


def test_without_magnetisation_there_is_no_flow():
    found = cbf_from_deltam(
        np.ones(3), np.array([0.0, -1.0, np.nan]), pld_s=1.8, labelling_duration_s=1.8
    )
    assert found.tolist() == [0.0, 0.0, 0.0]


def test_differences_are_averaged_and_calibrated_by_the_volume_of_the_same_file(tmp_path):
    deltam = buxton(CBF, M0, pld=1.8, att=1.0)
    path = series(
        tmp_path, {"m0scan": M0, "deltam 1": 0.5 * deltam, "deltam 2": 1.5 * deltam}, COMPLETE
    )
    np.testing.assert_allclose(cbf_of(read_raw_asl(path)), CBF, rtol=1e-4)
    np.testing.assert_allclose(cbf_of(read_raw_asl(path, index=2)), 1.5 * CBF, rtol=1e-4)
    part = asl_part(path, 3)
    assert (part.kind, part.volume, part.pld_s) == ("deltam", None, 1.8)


def test_control_minus_label(tmp_path):
    deltam = buxton(CBF, M0, pld=1.8, att=1.0)
    volumes = {"m0scan": M0, "control 1": M0, "label 1": M0 - deltam, "control 2": M0 + 2 * deltam}
    path = series(tmp_path, volumes | {"label 2": M0 + deltam}, COMPLETE)
    np.testing.assert_allclose(cbf_of(read_raw_asl(path)), CBF, rtol=1e-3)


def test_a_separate_calibration_image_and_a_number(tmp_path):
    deltam = buxton(CBF, M0, pld=1.8, att=1.0)
    path = series(tmp_path, {"deltam": deltam}, COMPLETE | {"M0Type": "Separate"})
    m0 = tmp_path / "sub-0001_m0scan.nii"
    nibabel.save(nibabel.Nifti1Image(M0.astype(np.float32), AFFINE), m0)
    np.testing.assert_allclose(cbf_of(read_raw_asl(path)), CBF, rtol=1e-4)
    nibabel.save(nibabel.Nifti1Image(M0.astype(np.float32), 1.1 * AFFINE), m0)
    with pytest.raises(ScanError, match=r"m0scan\.nii is not on the grid"):
        read_raw_asl(path)
    number = COMPLETE | {"M0Type": "Estimate", "M0Estimate": 1000.0}
    path = series(tmp_path, {"deltam": deltam}, number)
    np.testing.assert_allclose(cbf_of(read_raw_asl(path)), CBF * M0 / 1000.0, rtol=1e-4)


def test_later_slices_have_a_longer_delay(tmp_path):
    times = [0.1, 0.2, 0.3, 0.4]
    deltam = np.stack(
        [buxton(CBF[..., z], M0[..., z], pld=1.8 + times[z] - 0.1, att=1.0) for z in range(4)], -1
    )
    flat = {"MRAcquisitionType": "2D", "SliceTiming": times}
    path = series(tmp_path, {"m0scan": M0, "deltam": deltam}, COMPLETE | flat)
    np.testing.assert_allclose(cbf_of(read_raw_asl(path)), CBF, rtol=1e-4)
    series(tmp_path, {"m0scan": M0, "deltam": deltam}, COMPLETE | flat | {"SliceTiming": times[:3]})
    with pytest.raises(ScanError, match="3 entries, the file 4 slices"):
        read_raw_asl(path)


def test_air_has_no_flow_and_the_manifests_delay_goes_before_the_sidecars(tmp_path):
    m0 = M0.copy()
    m0[0, 0, 0] = 20.0  # below 5 % of the 95th percentile
    deltam = buxton(CBF, M0, pld=2.1, att=1.0)
    path = series(tmp_path, {"m0scan": m0, "deltam": deltam}, COMPLETE)
    found = cbf_of(read_raw_asl(path, pld_s=2.1))
    assert found[0, 0, 0] == 0.0
    np.testing.assert_allclose(found[1:], CBF[1:], rtol=1e-4)


def test_efficiency_and_field_strength_are_the_sidecars(tmp_path):
    deltam = np.full(SHAPE, 10.0) + np.arange(SHAPE[0])[:, None, None]
    plain = cbf_of(read_raw_asl(series(tmp_path, {"m0scan": M0, "deltam": deltam}, COMPLETE)))
    half = COMPLETE | {"LabelingEfficiency": 0.425}
    found = cbf_of(read_raw_asl(series(tmp_path, {"m0scan": M0, "deltam": deltam}, half)))
    np.testing.assert_allclose(found, 2.0 * plain, rtol=1e-5)
    low = COMPLETE | {"MagneticFieldStrength": 1.5}
    found = cbf_of(read_raw_asl(series(tmp_path, {"m0scan": M0, "deltam": deltam}, low)))
    ratio = [math.exp(1.8 / t) / (t * (1 - math.exp(-1.8 / t))) for t in (1.35, 1.65)]
    np.testing.assert_allclose(found, plain * ratio[0] / ratio[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"PostLabelingDelay": None}, "PostLabelingDelay is None"),
        ({"PostLabelingDelay": [1.5, 2.0]}, "several delays"),
        ({"PostLabelingDelay": 1800}, "at most 10"),
        ({"LabelingDuration": 0}, "LabelingDuration is 0"),
        ({"LabelingDuration": True}, "LabelingDuration is True"),
        ({"M0Type": "Absent"}, "Included, Separate, Estimate"),
        ({"M0Type": "Separate"}, r"no sub-0001_m0scan\.nii\.gz beside"),
        ({"M0Type": "Estimate"}, "M0Estimate is 'nothing'"),
        ({"ArterialSpinLabelingType": "PASL"}, "Allowed: PCASL"),
        ({"LabelingEfficiency": 85}, "at most 1"),
        ({"MRAcquisitionType": "2D"}, "SliceTiming is 'nothing'"),
        (
            {"MRAcquisitionType": "2D", "SliceTiming": [0.0], "SliceEncodingDirection": "k-"},
            "SliceEncodingDirection",
        ),
    ],
)
def test_an_incomplete_sidecar_is_refused_with_the_field(tmp_path, change, problem):
    path = series(tmp_path, {"m0scan": M0, "deltam": CBF}, COMPLETE | change)
    with pytest.raises(ScanError, match=problem) as caught:
        asl_part(path, 2)
    assert caught.value.code == "E201"


def test_a_list_with_zeros_for_the_calibration_is_one_time(tmp_path):
    lists = {"PostLabelingDelay": [0, 1.8], "LabelingDuration": [0, 1.8]}
    path = series(tmp_path, {"m0scan": M0, "deltam": CBF}, COMPLETE | lists)
    part = asl_part(path, 2)
    assert (part.kind, part.volume, part.pld_s) == ("deltam", 1, 1.8)


@pytest.mark.parametrize(
    ("volumes", "problem"),
    [
        (["cbf", "cbf"], "2 cbf volumes"),
        (["control", "control", "label"], "2 control and 1 label"),
        (["m0scan"], "no pairs"),
        (["perfusion"], r"\['perfusion'\]"),
        (["deltam"], "no volume of sub-0001_asl.nii.gz is m0scan"),
    ],
)
def test_volumes_that_give_no_single_map(tmp_path, volumes, problem):
    images = {f"{kind} {n}": CBF + n for n, kind in enumerate(volumes)}
    path = series(tmp_path, images, COMPLETE)
    with pytest.raises(ScanError, match=problem):
        asl_part(path, len(volumes))


def test_table_and_file_must_agree_and_the_table_must_be_there(tmp_path):
    path = series(tmp_path, {"cbf": CBF, "m0scan": M0})
    assert (asl_part(path, 2).volume, asl_part(path, 2).pld_s) == (0, None)
    with pytest.raises(ScanError, match=r"3 volumes, but sub-0001_aslcontext\.tsv has 2"):
        asl_part(path, 3)
    (tmp_path / "sub-0001_aslcontext.tsv").write_bytes(b"volume_type\n\xff\n")
    with pytest.raises(ScanError, match="cannot be read"):
        asl_part(path, 2)
    (tmp_path / "sub-0001_aslcontext.tsv").unlink()
    with pytest.raises(ScanError, match=r"no sub-0001_aslcontext\.tsv"):
        asl_part(path, 2)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_sidecar_that_is_no_object(tmp_path, text):
    path = series(tmp_path, {"m0scan": M0, "deltam": CBF})
    with pytest.raises(ScanError, match=r"no sub-0001_asl\.json"):
        asl_part(path, 2)
    (tmp_path / "sub-0001_asl.json").write_text(text)
    with pytest.raises(ScanError, match=r"sub-0001_asl\.json"):
        asl_part(path, 2)


def test_a_wrong_volume_of_a_series(tmp_path):
    path = series(tmp_path, {"m0scan": M0, "deltam": CBF}, COMPLETE)
    with pytest.raises(ScanError, match="asl_volume is 0, there is m0scan"):
        read_raw_asl(path, index=0)
    with pytest.raises(ScanError, match="only volumes 0 to 1"):
        read_raw_asl(path, index=5)


def test_preprocessing_takes_the_computed_map(tmp_path):
    deltam = buxton(CBF, M0, pld=1.8, att=1.0)
    raw = series(tmp_path, {"m0scan": M0, "deltam": deltam}, COMPLETE)
    finished, mask = tmp_path / "cbf.nii", tmp_path / "mask.nii"
    nibabel.save(nibabel.Nifti1Image(CBF.astype(np.float32), AFFINE), finished)
    brain = np.zeros(SHAPE, dtype=np.float32)
    brain[1:5, 1:4] = 1.0
    nibabel.save(nibabel.Nifti1Image(brain, AFFINE), mask)
    grid = GridConfig(rows=8, columns=8, spacing_mm=4.0)

    def prepared(path, **extra):
        images = {Modality.T1WI: finished, Modality.ASL: path}
        record = ScanRecord("sub-0001", "ses-01", images, brain_mask=mask, **extra)
        return record, prepare_scan(record, grid).images[Modality.ASL]

    _, wanted = prepared(finished)
    record, found = prepared(raw, asl_kind="deltam", asl_volume=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    before = cache_key(record, grid)
    raw.with_name("sub-0001_asl.json").write_text(json.dumps(COMPLETE | {"PostLabelingDelay": 2}))
    assert cache_key(record, grid) != before
