"""The gallery of the check: numbers by hand, which way up its panels are, where it may lie."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

import client.cli
from client.gallery import gallery_folder, write_gallery
from iedn.config import PRESETS
from iedn.errors import ConfigError, PolicyError
from iedn.modalities import Modality
from sites.dataset import examine_cohort
from sites.montage import CAPTION, EDGE, GREYS, MARK, OUTLINE, montage, turned
from sites.preprocessing import Frame, Geometry, PreparedScan
from sites.reading import Finding
from sites.suspicion import Fit, ScanNumbers, scan_numbers

LPS = np.diag([-4.0, -4.0, 4.0, 1.0])
"""Indices grow to the left, the back and the top."""


def numbers(ml=1327.0, findings=0, **fits):
    """A scan; ``fits`` are steps, or steps and distances, in mm."""
    pairs = {name: fit if isinstance(fit, tuple) else (fit, None) for name, fit in fits.items()}
    fits = {name: Fit(*pair, 0.5) for name, pair in pairs.items()}
    found = tuple(Finding("W221", "moved", "T2WI") for _ in range(findings))
    return ScanNumbers(ml, fits, found)


@pytest.mark.parametrize(
    ("found", "suspicion"),
    [
        # The geometric middle of 800 and 2200 ml is 1326.6 ml: 0 there, 1 at both ends.
        (numbers(np.sqrt(800.0 * 2200.0)), 0.0),
        (numbers(800.0), 1.0),
        (numbers(2200.0), 1.0),
        # A step counts 1 at 0.5 mm, a distance at 1.7 mm; the largest counts, not the sum.
        (numbers(T2WI=0.25, ADC=0.1), 0.5),
        (numbers(800.0, T2WI=1.0), 2.0),
        (numbers(T2WI=(1.0, 5.1)), 3.0),
        (numbers(T2WI=(2.0, 1.7)), 4.0),
        (numbers(T2WI=None), 1.0),
        (numbers(T2WI=0.25, findings=2), 2.5),
    ],
)
def test_suspicion_by_hand(found, suspicion):
    assert found.suspicion == pytest.approx(suspicion, abs=1e-3)


def test_the_image_that_lies_worst_is_named():
    assert numbers(T2WI=0.2, ADC=2.0).worst[0] == "ADC"
    assert numbers(T2WI=9.0, ADC=None).worst[0] == "T2WI"
    assert numbers(T2WI=(0.6, 5.1), ADC=1.0).worst[0] == "T2WI"
    assert numbers().worst is None


def test_volumes_are_turned_top_down_front_to_back_and_right_to_left():
    volume = np.zeros((3, 4, 5), dtype=np.float32)
    volume[2, 0, 0] = 1.0
    # Already front to back and right to left; upside down.
    np.testing.assert_array_equal(np.argwhere(turned(volume, LPS)), [[0, 0, 0]])
    # Indices that grow to the right, front and bottom: the voxel is at the left, the back, below.
    affine = np.diag([4.0, 4.0, -4.0, 1.0])
    np.testing.assert_array_equal(np.argwhere(turned(volume, affine)), [[2, 3, 4]])


def head(**others):
    """A ball of brain; a bright block in its front right upper part."""
    z, y, x = np.indices((40, 44, 36)) - np.array([20, 22, 18]).reshape(3, 1, 1, 1)
    mask = (z**2 + y**2 + x**2 < 15**2).astype(np.float32)
    texture = np.random.default_rng(5).uniform(0.6, 1.0, mask.shape).astype(np.float32)
    image = 0.25 * mask * texture
    # Not symmetric: towards index 0 of W (right) and H (front), and the top of D.
    image[22:38, 12:18, 8:14] = 0.8
    frame = Frame(mask.shape, LPS)
    images = {Modality.T1WI: image, **{Modality(k): f(image) for k, f in others.items()}}
    return PreparedScan(images, mask, Geometry(frame, frame, LPS))


def drawn(scan):
    images = {str(m): image for m, image in scan.images.items()}
    content = montage("sub-0007/visit-1", scan, images, scan_numbers(scan, images))
    return np.asarray(Image.open(io.BytesIO(content)))


def test_a_displaced_image_is_measured_and_a_matching_one_is_not_suspected():
    scan = head(T2WI=lambda image: 0.9 - image, ADC=lambda image: np.roll(image, 1, axis=2))
    found = scan_numbers(scan, {str(m): image for m, image in scan.images.items()})
    # ADC is shifted by one voxel of 4 mm: one step does not go all the way, the search does.
    assert found.worst[0] == "ADC"
    assert 0.5 < found.fits["ADC"].step_mm < 4.0
    assert found.fits["ADC"].off_mm == pytest.approx(4.0, abs=0.4)
    assert "off by" in found.fits["ADC"].text()
    assert found.fits["T2WI"].step_mm < 0.5
    assert found.fits["T2WI"].off_mm is None
    assert found.fits["T2WI"].text().startswith("lies well")
    assert found.fits["T2WI"].match > found.fits["ADC"].match
    # A ball of radius 15 voxels less their corners, of 64 mm3.
    assert found.mask_ml == pytest.approx(4 / 3 * np.pi * 15**3 * 0.064, rel=0.02)


def test_the_patients_right_is_on_the_left_and_the_front_is_up():
    picture = drawn(head())
    # Axial panels come first: below two strips of text, 18 pixels each.
    axial = picture[36 : 36 + 140, :130]
    bright = np.argwhere((axial > 0.9 * GREYS) & (axial < GREYS))
    rows, columns = axial.shape[0] / 2, axial.shape[1] / 2
    below, right = bright.mean(axis=0)
    assert right < columns
    assert below < rows
    assert (axial == OUTLINE).any()


def test_colours_stand_for_lines_and_letters():
    alone, pair = drawn(head()), drawn(head(T2WI=lambda image: 0.9 - image))
    for colour in (OUTLINE, MARK, CAPTION):
        assert (alone == colour).any()
    assert not (alone == EDGE).any()
    assert (pair == EDGE).any()
    assert pair.shape[0] > alone.shape[0]


@pytest.fixture
def config(bad, tmp_path):
    return bad.Site(tmp_path / "site").write()


def test_a_gallery_in_a_published_folder_is_refused(config, tmp_path):
    repository, served, run = (tmp_path / name for name in ("code", "public_html", "run"))
    (repository / ".git").mkdir(parents=True)
    run.mkdir()
    (run / "federation.toml").touch()
    for place in (repository / "out" / "gallery", served / "gallery", run):
        with pytest.raises(PolicyError, match="show patients"):
            gallery_folder(place, config)
        assert not (place / "gallery.json").exists()
    (tmp_path / "link").symlink_to(repository)
    with pytest.raises(PolicyError, match="repository"):
        gallery_folder(tmp_path / "link" / "gallery", config)
    # The site's own folder is private, even inside one that is not.
    (tmp_path / ".git").mkdir()
    assert gallery_folder(config.folder / "gallery", config).is_dir()


def test_a_folder_with_other_files_is_left_alone(config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    with pytest.raises(ConfigError, match="holds other files"):
        gallery_folder(tmp_path / "mine", config)
    with pytest.raises(ConfigError, match="cannot be made"):
        gallery_folder(tmp_path / "mine" / "letter.txt" / "gallery", config)


def test_an_interrupted_gallery_is_begun_again(bad, config, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    cohort = examine_cohort(config, PRESETS["tiny"].grid)
    folder = gallery_folder(tmp_path / "gallery", config)
    with monkeypatch.context() as patched:
        patched.setattr("sites.montage.montage", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_gallery(config, cohort, folder)
    assert write_gallery(config, cohort, gallery_folder(folder, config)).is_file()


def test_gallery_shows_every_scan_the_most_suspicious_first(bad, call, tmp_path):
    site = bad.Site(tmp_path, patients=3)
    site.rows[1]["brain_mask"] = "sub-0002/visit-1/small_mask.nii.gz"
    # Half the slices: 664 ml, below 800 ml (W206).
    site.save(site.rows[1]["brain_mask"], bad.disc(69, 4))
    site.write()
    folder = tmp_path / "gallery"
    words = ("--site", tmp_path, "check", "--preset", "tiny", "--overlays", "0")
    code, out, error = call(client.cli.main, *words, "--gallery", folder, "--json")
    assert code == 0, error
    assert json.loads(out)["gallery"] == str(folder / "index.html")
    record = json.loads((folder / "gallery.json").read_bytes())
    assert record["scans"][0]["scan"] == "sub-0002/visit-1"
    assert record["scans"][0]["suspicion"] > 2.0
    page = (folder / "index.html").read_text()
    assert "stay at this site" in page
    assert re.findall(r'<h2 id="scan-\d">(sub-\d+)', page)[0] == "sub-0002"
    assert page.count("data:image/png;base64,") == 3
    assert not re.search("https?://", page)
    assert folder.stat().st_mode & 0o777 == 0o700
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 3 + 2
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    # A later gallery removes the pictures of scans that are gone.
    site.rows[0]["exclude_reason"] = "withdrawn"
    site.write()
    code, out, _ = call(client.cli.main, *words, "--gallery", folder)
    assert code == 0
    assert "most suspicious first" in out
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["sub-0002", "sub-0003"]
