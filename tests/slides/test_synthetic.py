from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from scipy import ndimage, stats
from skimage.color import rgb2hed
from skimage.filters import threshold_otsu
from skimage.measure import label as connected_components
from skimage.measure import regionprops

from medkd.slides.synthetic import (
    ARTEFACTS,
    SITES,
    SlideSpec,
    cohort_specs,
    draw_severity,
    draw_slide,
    files,
    write_cohort,
    write_slide,
)
from medkd.slides.synthetic.tissue import NUCLEUS_KINDS, lay_out_tissue


def small(**changes) -> SlideSpec:
    return dataclasses.replace(SlideSpec("MSS", seed=5, width_px=512, height_px=512), **changes)


def auroc(low: np.ndarray, high: np.ndarray) -> float:
    return stats.mannwhitneyu(high, low).statistic / (len(low) * len(high))


# The file, as OpenSlide sees it.


@pytest.mark.parametrize(("mpp", "power"), [(0.25, "40"), (0.5, "20")])
def test_openslide_takes_it_for_an_aperio_slide_that_says_it_is_synthetic(tmp_path, mpp, power):
    path = tmp_path / "slide.svs"
    write_slide(small(mpp=mpp, width_px=1100), path)
    with openslide.OpenSlide(path) as slide:
        properties = dict(slide.properties)
        assert slide.dimensions == (1100, 512)
    assert properties["openslide.vendor"] == "aperio"
    assert float(properties["openslide.mpp-x"]) == mpp
    assert float(properties["openslide.mpp-y"]) == mpp
    assert properties["openslide.objective-power"] == power
    assert properties["aperio.Synthetic"] == "medkd"


@pytest.mark.parametrize(
    ("side_px", "downsamples"), [(512, [1]), (1024, [1, 4]), (4096, [1, 4, 16])]
)
def test_levels_are_a_quarter_of_the_one_before_as_size_allows(tmp_path, side_px, downsamples):
    path = tmp_path / "slide.svs"
    write_slide(small(width_px=side_px, height_px=side_px), path)
    with openslide.OpenSlide(path) as slide:
        assert list(slide.level_downsamples) == downsamples


def test_parts_lie_in_aperios_order(tmp_path):
    path = tmp_path / "slide.svs"
    write_slide(small(width_px=1024, height_px=1024, with_label_and_macro=True), path)
    with tifffile.TiffFile(path) as tiff:
        parts = [(page.shape[:2], page.is_tiled, int(page.subfiletype)) for page in tiff.pages]
    assert parts[0] == ((1024, 1024), True, 0)
    assert parts[1] == ((512, 512), False, 0)  # thumbnail
    assert parts[2] == ((256, 256), True, 0)
    assert [part[1:] for part in parts[3:]] == [(False, 1), (False, 9)]  # label, macro


def test_label_and_macro_are_there_when_asked_for(tmp_path):
    names = {}
    for wanted in (False, True):
        path = tmp_path / f"{wanted}.svs"
        write_slide(small(with_label_and_macro=wanted), path)
        with openslide.OpenSlide(path) as slide:
            names[wanted] = set(slide.associated_images)
            if wanted:
                label = np.asarray(slide.associated_images["label"].convert("L"))
                macro = np.asarray(slide.associated_images["macro"].convert("L"))
    assert names == {False: {"thumbnail"}, True: {"thumbnail", "label", "macro"}}
    # Writing: dark strokes on pale paper.
    assert 0.01 < (label < 100).mean() < 0.3
    assert np.median(label) > 220
    assert macro.shape[1] > macro.shape[0]


@pytest.mark.parametrize("site", sorted(SITES))
def test_openslide_reads_the_pixels_that_were_drawn(tmp_path, site):
    spec = small(site=site, width_px=1030, height_px=1100)
    path = tmp_path / "slide.svs"
    write_slide(spec, path)
    drawn = draw_slide(spec).astype(float)
    with openslide.OpenSlide(path) as slide:
        read = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"), float)
        level_1 = np.asarray(slide.read_region((0, 0), 1, (256, 256)).convert("RGB"), float)
    # JPEG moves single pixels but no channel's mean; exchanged channels or a wrong colour space do.
    assert np.abs(read - drawn).mean() < 5
    assert np.abs((read - drawn).mean((0, 1))).max() < 0.5
    blocks = drawn[:1024, :1024].reshape(256, 4, 256, 4, 3).mean((1, 3))
    assert np.abs(level_1 - blocks).mean() < 6
    assert np.abs((level_1 - blocks).mean((0, 1))).max() < 0.6


# What is in the picture.


def test_colours_are_those_of_haematoxylin_and_eosin():
    image = draw_slide(small(width_px=1024, height_px=1024))
    glass = np.median(image[image.min(2) > 225], axis=0)
    assert glass.min() > 225
    red, green, blue = np.median(image[(image.min(2) < 200) & (image[..., 0] > 170)], axis=0)
    assert red > blue > green + 20  # pink
    red, green, blue = np.median(image[image[..., 0] < 110], axis=0)
    assert blue > red > green  # violet


def nucleus_diameters_um(image: np.ndarray, mpp: float) -> np.ndarray:
    """Equivalent diameters of single convex blobs in the haematoxylin channel (Ruifrok's)."""
    haematoxylin = ndimage.gaussian_filter(rgb2hed(image)[..., 0], 0.5 / mpp)
    tissue = image.min(2) < 200
    nuclei = haematoxylin > threshold_otsu(haematoxylin[tissue])
    nuclei = ndimage.binary_fill_holes(nuclei)
    blobs = regionprops(connected_components(nuclei))
    diameters = [b.equivalent_diameter_area * mpp for b in blobs if b.solidity > 0.92]
    return np.array([d for d in diameters if d > 4])


def test_a_nucleus_is_8_um_whatever_the_mpp():
    medians = {}
    for mpp in (0.25, 0.5):
        side_px = round(400 / mpp)
        image = draw_slide(small(mpp=mpp, width_px=side_px, height_px=side_px, severity=0.5))
        diameters = nucleus_diameters_um(image, mpp)
        assert len(diameters) > 60
        medians[mpp] = float(np.median(diameters))
    assert all(6.5 < median < 9.5 for median in medians.values()), medians
    assert medians[0.25] == pytest.approx(medians[0.5], rel=0.1)


def test_the_same_tissue_is_shown_at_every_mpp():
    fine, coarse = (
        draw_slide(small(mpp=mpp, width_px=px, height_px=px))
        for mpp, px in ((0.25, 1600), (0.5, 800))
    )
    means = [
        image.astype(float).reshape(20, len(image) // 20, 20, -1, 3).mean((1, 3)).ravel()
        for image in (fine, coarse)
    ]
    assert np.corrcoef(*means)[0, 1] > 0.97


def contents(severity: float, seed: int) -> dict[str, float]:
    tissue = lay_out_tissue(1024, 1024, severity, np.random.default_rng(seed))
    kinds = [s.kind for s in tissue.structures]
    lymphocytes = (tissue.nuclei[:, 3] == NUCLEUS_KINDS.index("lymphocyte")).sum()
    radii = [s.radius_um for s in tissue.structures if s.kind == "gland"]
    return {
        **{kind: kinds.count(kind) for kind in ("gland", "sheet", "mucin")},
        "lymphocytes": int(lymphocytes),
        "smallest_um": 2 * min(radii),
        "largest_um": 2 * max(radii),
    }


def test_msi_has_more_lymphocytes_mucin_and_sheets_and_fewer_glands():
    mss, msi = (
        {key: np.mean([c[key] for c in found]) for key in found[0]}
        for found in ([contents(severity, seed) for seed in range(4)] for severity in (0.2, 0.8))
    )
    assert msi["lymphocytes"] > 2 * mss["lymphocytes"]
    assert msi["sheet"] > 2 * mss["sheet"]
    assert msi["mucin"] > 2 * mss["mucin"]
    assert mss["gland"] > 2 * msi["gland"]


def test_glands_are_80_to_150_um_across():
    found = contents(0.3, 0)
    assert 70 < found["smallest_um"] < found["largest_um"] < 160


def test_neither_mean_colour_nor_tissue_area_tells_the_pattern():
    differences = []
    for seed in range(16):
        mss, msi = (
            draw_slide(small(seed=seed, severity=severity, width_px=1024, height_px=1024))
            for severity in (0.3, 0.7)
        )
        tissue = [image.min(2) < 215 for image in (mss, msi)]
        colour = msi[tissue[1]].mean(0) - mss[tissue[0]].mean(0)
        differences.append([*colour, 100 * (tissue[1].mean() - tissue[0].mean())])
    # Pairs differ by some 7 levels and 2 per cent of tissue.
    assert np.abs(np.mean(differences, 0)).max() < 5, np.mean(differences, 0)


def test_severities_of_the_classes_overlap_as_documented():
    mss, msi = (
        np.array([draw_severity(label, seed) for seed in range(1000)]) for label in ("MSS", "MSI")
    )
    expected = stats.norm.cdf(0.38 / (0.12 * math.sqrt(2)))
    assert auroc(mss, msi) == pytest.approx(expected, abs=0.01)
    assert mss.max() > msi.min()


# Artefacts.


def with_and_without(artefact: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    spec = small(seed=seed, width_px=1024, height_px=1024)
    plain = draw_slide(spec)
    spoilt = draw_slide(dataclasses.replace(spec, artefacts=frozenset({artefact})))
    changed = np.abs(spoilt.astype(int) - plain).max(2) > 12
    return plain, spoilt, changed


def test_pen_has_the_colour_of_a_pen():
    pens = {"blue": (30, 60, 170), "green": (20, 120, 60), "black": (25, 25, 30)}
    pens["red"] = (190, 25, 40)
    seen = set()
    for seed in range(8):
        _, spoilt, changed = with_and_without("pen", seed)
        assert 0.01 < changed.mean() < 0.4
        ink = np.median(spoilt[ndimage.binary_erosion(changed, iterations=8)], axis=0)
        distance = {name: np.abs(ink - colour).max() for name, colour in pens.items()}
        nearest = min(distance, key=lambda name: distance[name])
        assert distance[nearest] < 50
        seen.add(nearest)
    assert len(seen) >= 3


def test_out_of_focus_takes_the_edges_away():
    plain, spoilt, changed = with_and_without("out_of_focus", 1)
    inside = ndimage.binary_erosion(ndimage.binary_closing(changed, iterations=6), iterations=40)
    assert inside.sum() > 5000
    before, after = (ndimage.laplace(image.mean(2))[inside].var() for image in (plain, spoilt))
    assert after < 0.1 * before


def test_fold_is_dark_and_narrow():
    plain, spoilt, changed = with_and_without("fold", 1)
    assert 0.02 < changed.mean() < 0.3
    assert spoilt[changed].mean() < plain[changed].mean() - 25


def test_pale_tissue_takes_less_stain():
    plain, spoilt, changed = with_and_without("pale", 1)
    assert changed.mean() > 0.03
    before, after = (-np.log10((i[changed] + 1) / 245).mean() for i in (plain, spoilt))
    assert after < 0.75 * before


# Sameness, and files that are whole or absent.


def test_same_seed_same_bytes_even_from_threads(tmp_path):
    spec = small(artefacts=frozenset(ARTEFACTS), with_label_and_macro=True)
    paths = [tmp_path / f"{number}.svs" for number in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda path: write_slide(spec, path), paths))
    assert len({path.read_bytes() for path in paths}) == 1


def test_another_seed_another_slide(tmp_path):
    write_slide(small(seed=1), tmp_path / "1.svs")
    write_slide(small(seed=2), tmp_path / "2.svs")
    assert (tmp_path / "1.svs").read_bytes() != (tmp_path / "2.svs").read_bytes()


@pytest.mark.parametrize("exists", [False, True])
def test_failure_while_writing_leaves_nothing_behind(tmp_path, monkeypatch, exists):
    path = tmp_path / "slide.svs"
    if exists:
        path.write_bytes(b"what was there")
    calls = itertools.count()
    encode = files.simplejpeg.encode_jpeg

    def fail_at_the_third(*args, **options):
        if next(calls) == 2:
            raise OSError("the disk fell out")
        return encode(*args, **options)

    monkeypatch.setattr(files.simplejpeg, "encode_jpeg", fail_at_the_third)
    with pytest.raises(OSError, match="the disk fell out"):
        write_slide(small(), path)
    assert [p.name for p in tmp_path.iterdir()] == (["slide.svs"] if exists else [])
    if exists:
        assert path.read_bytes() == b"what was there"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "MSX"}, "label must be MSI or MSS, not 'MSX'"),
        ({"site": "C"}, "site must be one of"),
        ({"mpp": 5.0}, "mpp must lie between 0.2 and 1 um/px, not 5.0"),
        ({"mpp": math.nan}, "mpp must lie between"),
        ({"width_px": 10}, "at least 256 px wide and high, not 10 x 512"),
        ({"seed": -1}, "seed must not be negative"),
        ({"severity": 1.5}, "severity must lie between 0 and 1, not 1.5"),
        ({"artefacts": frozenset({"coffee"})}, r"unknown artefacts \['coffee'\]"),
    ],
)
def test_wrong_specifications_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        small(**changes)
    assert "\n" not in str(caught.value)


def test_drawing_needs_no_torch():
    code = "import sys, medkd.slides.synthetic; assert 'torch' not in sys.modules"
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


# Cohorts.


def test_cohort_is_balanced_and_site_tells_no_class():
    slides = cohort_specs(patients=40, seed=0)
    patients = {s.patient_id: s for s in slides}
    assert len(patients) == 40
    assert [s.slide_id for s in slides[:1]] == ["SYN-0001-1"]
    assert len(slides) == 50  # a quarter have two
    labels = [p.spec.label for p in patients.values()]
    assert labels.count("MSI") == 18
    assert labels != sorted(labels)
    assert labels != sorted(labels, reverse=True)
    table = [
        sum(p.spec.label == label and p.spec.site == site for p in patients.values())
        for label in ("MSI", "MSS")
        for site in "AB"
    ]
    assert table == [9, 9, 11, 11]
    for s in slides:
        first = patients[s.patient_id].spec
        assert (s.spec.label, s.spec.site, s.spec.severity) == (
            first.label,
            first.site,
            first.severity,
        )
    assert len({s.spec.seed for s in slides}) == len(slides)
    assert 1 <= sum(bool(s.spec.artefacts) for s in slides) <= len(slides) // 3


@pytest.mark.parametrize("seed", range(5))
def test_every_cohort_overlaps_as_it_should(seed):
    slides = cohort_specs(patients=40, seed=seed)
    by_label = [
        np.array([s.spec.severity for s in slides if s.spec.label == label])
        for label in ("MSS", "MSI")
    ]
    assert 0.96 < auroc(*by_label) < 0.999


def test_artefacts_are_as_frequent_in_both_classes():
    slides = cohort_specs(patients=4000, seed=1)
    shares = [
        np.mean([bool(s.spec.artefacts) for s in slides if s.spec.label == label])
        for label in ("MSS", "MSI")
    ]
    assert shares == pytest.approx([0.2, 0.2], abs=0.03)


@pytest.fixture(scope="module")
def cohort_table(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "slides"
    seen: list[tuple[int, int]] = []
    table = write_cohort(
        folder,
        patients=4,
        width_px=1024,
        height_px=512,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 5) for done in range(6)]
    return table


def test_cohort_table_lists_the_slides(cohort_table):
    with cohort_table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["slide_id", "path", "patient_id", "label", "site", "scanner"]
    for row in rows:
        assert row["slide_id"].startswith(row["patient_id"] + "-")
        assert row["label"] in {"MSI", "MSS"}
        assert not Path(row["path"]).is_absolute()
        with openslide.OpenSlide(cohort_table.parent / row["path"]) as slide:
            assert slide.dimensions == (1024, 512)
            assert slide.properties["aperio.Synthetic"] == "medkd"
    classes = {(row["patient_id"], row["label"]) for row in rows}
    assert len(classes) == len({row["patient_id"] for row in rows}) == 4
    assert {path.name for path in cohort_table.parent.iterdir()} == {
        "slides.csv",
        *(row["path"] for row in rows),
    }


def test_whole_slides_are_left_and_damaged_ones_drawn_again(cohort_table):
    folder = cohort_table.parent
    slides = sorted(folder.glob("*.svs"))
    before = {path.name: path.read_bytes() for path in slides}
    times = {path.name: path.stat().st_mtime_ns for path in slides}
    slides[0].write_bytes(before[slides[0].name][:-500])
    slides[1].write_bytes(before[slides[1].name][:3000])
    slides[2].write_bytes(before[slides[3].name])  # whole, but another slide
    seen: list[int] = []
    write_cohort(
        folder,
        patients=4,
        width_px=1024,
        height_px=512,
        workers=1,
        on_progress=lambda done, total: seen.append(done),
    )
    assert seen == [2, 3, 4, 5]
    assert {path.name: path.read_bytes() for path in slides} == before
    for path in slides[3:]:
        assert path.stat().st_mtime_ns == times[path.name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patients": 0}, "at least one patient, not 0"),
        ({"share_msi": 1.5}, "share_msi must lie between 0 and 1, not 1.5"),
        ({"workers": 0}, "workers must be at least 1, not 0"),
        ({"mpp": 3.0}, "mpp must lie between"),
    ],
)
def test_wrong_cohorts_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write_cohort(tmp_path / "slides", **options)
    assert not (tmp_path / "slides").exists()
