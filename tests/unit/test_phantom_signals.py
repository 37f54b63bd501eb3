"""The phantom's signal equations against closed forms and published tables."""

import numpy as np
import pytest

from iedn.modalities import Modality
from simulation.phantom.signals import (
    BLOOD_T1_S,
    PARTITION,
    TIMINGS,
    Head,
    asl_cbf,
    asl_difference,
    cbv_of,
    contrast_concentration,
    ideal_image,
    relaxation_with_contrast,
    spin_echo,
)
from simulation.phantom.tissue import RimValues, Tissue, tissue_table


def uniform_head(**shares: float) -> Head:
    fractions = np.zeros((len(Tissue), 2, 2, 2), dtype=np.float32)
    for name, share in shares.items():
        fractions[Tissue[name]] = share
    one = np.ones((2, 2, 2), dtype=np.float32)
    return Head(fractions, one, one, one)


@pytest.mark.parametrize("cbf", [10.0, 60.0, 140.0])
@pytest.mark.parametrize("att_s", [0.2, 1.0, 1.8])
def test_asl_is_exact_when_label_decays_as_in_blood(cbf: float, att_s: float) -> None:
    # The consensus formula assumes T1' = T1b and arrival before the delay ends.
    t1_s = 1.0 / (1.0 / BLOOD_T1_S - cbf / 6000.0 / PARTITION)
    assert float(asl_cbf(asl_difference(cbf, att_s, t1_s))) == pytest.approx(cbf, rel=1e-12)


@pytest.mark.parametrize(
    ("att_s", "share"),
    [(0.9, 0.95), (1.5, 0.97), (2.0, 0.81), (2.5, 0.47), (2.8, 0.31), (3.2, 0.14), (3.6, 0.0)],
)
def test_asl_misses_blood_that_arrives_late(att_s: float, share: float) -> None:
    apparent = float(asl_cbf(asl_difference(60.0, att_s, 1.6)))
    assert apparent / 60.0 == pytest.approx(share, abs=0.006)


def test_asl_does_not_depend_on_m0() -> None:
    assert float(asl_cbf(asl_difference(45.0, 1.2, 1.3, m0=7.0), m0=7.0)) == pytest.approx(
        float(asl_cbf(asl_difference(45.0, 1.2, 1.3)))
    )


def test_leakage_shortens_the_rims_t1_as_measured_in_patients() -> None:
    t1_s, t2_s = relaxation_with_contrast(1.60, 0.14, 0.14)
    assert 1000.0 * (1.60 - float(t1_s)) == pytest.approx(843.0, abs=1.0)
    assert float(t2_s) < 0.14


def test_blood_volume_alone_shortens_white_matters_t1_slightly() -> None:
    t1_s, _ = relaxation_with_contrast(0.83, 0.08, contrast_concentration(2.2, 0.0))
    assert 1000.0 * (0.83 - float(t1_s)) == pytest.approx(29.0, abs=0.5)


def test_flair_nulls_csf_and_plain_spin_echo_does_not() -> None:
    flair, t2 = TIMINGS[Modality.FLAIR], TIMINGS[Modality.T2WI]
    assert float(spin_echo(1.0, 4.2, 1e9, flair)) == pytest.approx(0.014, abs=0.001)
    assert float(spin_echo(1.0, 4.2, 1.5, t2)) > 0.6


def test_spin_echo_by_hand() -> None:
    # PD .8, TR = T1 ln 2 recovers one half, TE = T2 ln 4 leaves one quarter.
    timing = type(TIMINGS[Modality.T1WI])(tr_s=np.log(2.0), te_s=0.1 * np.log(4.0))
    assert float(spin_echo(0.8, 1.0, 0.1, timing)) == pytest.approx(0.8 * 0.5 * 0.25)


def test_signals_of_a_mixed_voxel_are_mixed_not_its_relaxation_times() -> None:
    table = tissue_table()
    mixed = ideal_image(uniform_head(WM=0.5, CSF=0.5), table, Modality.FLAIR)
    parts = [
        float(ideal_image(uniform_head(**{name: 1.0}), table, Modality.FLAIR)[0, 0, 0])
        for name in ("WM", "CSF")
    ]
    assert mixed == pytest.approx(np.full((2, 2, 2), sum(parts) / 2.0), rel=1e-5)
    assert parts[1] < 0.1 * parts[0]


def test_post_contrast_rim_is_brighter_with_more_blood_at_equal_leakage() -> None:
    head, bright = uniform_head(RIM=1.0), []
    for cbv in (2.0, 8.0):
        table = tissue_table("3T", RimValues(cbv, 1.2, 1.5, 6.0, 0.14))
        bright.append(float(ideal_image(head, table, Modality.T1_C)[0, 0, 0]))
    plain = float(ideal_image(head, tissue_table(), Modality.T1WI)[0, 0, 0])
    assert plain < bright[0] < bright[1]


def test_adc_map_is_in_micro_units_and_volume_weighted() -> None:
    image = ideal_image(uniform_head(GM=0.5, CSF=0.5), tissue_table(), Modality.ADC)
    assert image[0, 0, 0] == pytest.approx((800.0 + 3000.0) / 2.0)


def test_late_rim_is_hot_in_cbv_and_dark_in_asl() -> None:
    head, late = uniform_head(RIM=1.0), RimValues(6.4, 1.1, 3.2, 6.0, 0.14)
    table = tissue_table("3T", late)
    assert cbv_of(head, table, tuple(Tissue))[0, 0, 0] == pytest.approx(6.4)
    assert ideal_image(head, table, Modality.ASL)[0, 0, 0] < 0.2 * table[Tissue.RIM].cbf


def test_true_cbv_by_hand() -> None:
    head = uniform_head(GM=0.5, WM=0.4, VEIN=0.1)
    head.cbv_factor[...] = 1.2
    # Capillary blood varies, veins do not: 1.2 (.5 4.5 + .4 2.2) + .1 70.
    assert cbv_of(head, tissue_table(), tuple(Tissue))[0, 0, 0] == pytest.approx(10.756, rel=1e-5)


def test_field_strength_changes_relaxation_of_brain_tissue_only() -> None:
    high, low = tissue_table("3T"), tissue_table("1.5T")
    assert low[Tissue.WM].t1_s == pytest.approx(0.56)
    assert low[Tissue.WM].cbv == high[Tissue.WM].cbv
    assert low[Tissue.CSF] == high[Tissue.CSF]
