"""Anatomy and lesion: one brain a seed, a lesion on its own side."""

from dataclasses import replace

import numpy as np
import pytest

from iedn.errors import ConfigError
from simulation.phantom import template
from simulation.phantom.anatomy import Anatomy, head_lattice, make_anatomy
from simulation.phantom.fields import Lattice
from simulation.phantom.lesion import draw_shape, draw_texture, with_lesion
from simulation.phantom.tissue import Tissue

SEED, PATIENT = 4, 2


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return make_anatomy(SEED, PATIENT, head_lattice(spacing_mm=3.4375))


@pytest.fixture(scope="module")
def diseased(anatomy: Anatomy) -> np.ndarray:
    shape = replace(draw_shape(SEED, PATIENT), centre_mm=(18.0, -10.0, 30.0), oedema_mm=16.0)
    texture = draw_texture(SEED, PATIENT, anatomy.lattice)
    return with_lesion(anatomy, shape, texture, 17.0)


def test_same_seed_is_the_same_brain_on_the_fine_lattice(anatomy: Anatomy) -> None:
    fine = head_lattice(spacing_mm=0.6875)
    assert fine.spacing_mm == (1.0, 1.0, 2.0)
    assert fine.origin_mm == anatomy.lattice.origin_mm
    corner = Lattice((-30.0, -60.0, 10.0), fine.spacing_mm, (60, 60, 10))
    part = make_anatomy(SEED, PATIENT, corner)
    first = [round((c - o) / 2) for c, o in zip(corner.origin_mm, fine.origin_mm, strict=True)]
    box = tuple(slice(i, i + n) for i, n in zip(first, (30, 30, 10), strict=True))
    for tissue in (Tissue.GM, Tissue.WM, Tissue.CSF, Tissue.VEIN):
        expected = anatomy.fractions[(tissue, *box)]
        assert part.fractions[tissue][::2, ::2] == pytest.approx(expected, abs=2e-3)


def test_fractions_fill_the_head_and_nothing_else(anatomy: Anatomy) -> None:
    total = anatomy.fractions.sum(axis=0)
    assert total[anatomy.distance_mm < 10.0] == pytest.approx(1.0, abs=1e-4)
    assert np.all(total[anatomy.distance_mm > 14.0] == 0.0)
    assert anatomy.fractions.min() >= 0.0


def test_brain_has_human_volumes(anatomy: Anatomy) -> None:
    litres = float(np.prod(anatomy.lattice.spacing_mm)) * 1e-6
    volumes = {t: float(anatomy.fractions[t].sum()) * litres for t in (Tissue.GM, Tissue.WM)}
    assert 0.5 < volumes[Tissue.GM] < 1.1
    assert 0.35 < volumes[Tissue.WM] < 0.8
    assert 0.005 < float(anatomy.fractions[Tissue.VEIN].sum()) * litres < 0.1


def test_patients_differ(anatomy: Anatomy) -> None:
    lattice = Lattice((-30.0, -60.0, 10.0), (2.0, 2.0, 2.0), (30, 30, 20))
    one, other = (make_anatomy(SEED, p, lattice).fractions[Tissue.GM] for p in (2, 3))
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] < 0.9


def test_lesion_stays_on_its_side_of_the_falx(anatomy: Anatomy, diseased: np.ndarray) -> None:
    side = anatomy.template_mm[0]
    for tissue in (Tissue.OEDEMA, Tissue.RIM, Tissue.NECROSIS):
        assert float(diseased[tissue][side < -1.0].sum()) == 0.0
    near_midline = diseased[Tissue.OEDEMA][(side > 2.0) & (side < 8.0)]
    assert float(near_midline.max()) > 0.2


def test_rim_surrounds_necrosis_and_oedema_surrounds_both(
    anatomy: Anatomy, diseased: np.ndarray
) -> None:
    centre = np.array([18.0, -10.0, 30.0])[:, None, None, None]
    range_mm = np.sqrt(((anatomy.template_mm - centre) ** 2).sum(axis=0))
    mean_range = [
        float((diseased[t] * range_mm).sum() / diseased[t].sum())
        for t in (Tissue.NECROSIS, Tissue.RIM, Tissue.OEDEMA)
    ]
    assert mean_range == sorted(mean_range)
    assert diseased.sum(axis=0)[anatomy.distance_mm < 10.0] == pytest.approx(1.0, abs=1e-4)


def test_lesion_leaves_the_rest_of_the_head_alone(anatomy: Anatomy, diseased: np.ndarray) -> None:
    opposite = anatomy.template_mm[0] < -1.0
    assert np.array_equal(diseased[:, opposite], anatomy.fractions[:, opposite])


@pytest.mark.parametrize("patient", range(1, 9))
def test_lesions_lie_deep_and_clear_of_the_midline(patient: int) -> None:
    shape = draw_shape(SEED, patient)
    assert abs(shape.centre_mm[0]) > 0.7 * shape.radius_mm + 6.0
    assert -22.0 < shape.centre_mm[2] < 52.0


def test_without_nilearn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'iedn\[phantom\]'"):
        template.template_folder()
