"""What is a slide in a folder, and what a table of slides may say."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from medkd.errors import TableError
from medkd.inference.engine import Students, infer_slide
from medkd.inference.package import load_package
from medkd.inference.slide_files import (
    SlideFile,
    find_slides,
    slide_id_of,
    slides_in,
    slides_of_table,
    told_aside,
)
from tests.inference.folder_slides import CT_IMAGE, touch, write_dicom


def found_in(folder: Path) -> dict[str, list[str]]:
    """Slide to its files, relative to ``folder``; the first is the one to open."""
    return {
        slide.slide_id: [str(file.relative_to(folder)) for file in slide.files]
        for slide in slides_in(folder).slides
    }


@pytest.mark.parametrize(
    ("name", "slide_id"),
    [
        ("a.b.svs", "a.b"),
        ("S 12/3.svs", "3"),
        ("<script>x.svs", "_script_x"),
        ("Fälle.svs", "F_lle"),
        (".hidden.svs", "hidden"),
        ("line\nbreak.svs", "line_break"),
        ("\udcff.svs", "_"),
        ("...", "slide"),
    ],
)
def test_a_slide_id_can_name_a_folder(name, slide_id):
    assert slide_id_of(Path(name)) == slide_id


def test_slides_are_found_at_any_depth_by_their_names(tmp_path):
    touch(
        tmp_path,
        *("b.svs", "A/c.TIFF", "A/deep/er/d.ndpi", "A/notes.txt", "x.svs.part", "table.csv"),
        *(".hidden.svs", ".trash/e.svs"),
    )
    found = slides_in(tmp_path)
    assert [slide.slide_id for slide in found.slides] == ["b", "c", "d"]
    assert [slide.path for slide in found.slides] == [
        tmp_path / "b.svs",
        tmp_path / "A" / "c.TIFF",
        tmp_path / "A" / "deep" / "er" / "d.ndpi",
    ]
    assert {str(path.relative_to(tmp_path)) for path in found.left_aside} == {
        "A/notes.txt",
        "x.svs.part",
        "table.csv",
    }
    assert found.unusable == ()


def test_slides_of_several_files_are_one_slide_each(tmp_path):
    touch(tmp_path, "m.mrxs", "m/Slidedat.ini", "m/Data0000.dat", "m/inner.tif", "n/lone.tif")
    touch(tmp_path, "v/h.vms", "v/h.jpg", "v/h(1,0).jpg", "v/h.opt", "v/other.jpg")
    assert found_in(tmp_path) == {
        "m": ["m.mrxs", "m/Data0000.dat", "m/Slidedat.ini", "m/inner.tif"],
        "lone": ["n/lone.tif"],
        "h": ["v/h(1,0).jpg", "v/h.jpg", "v/h.opt", "v/h.vms"],
    }
    assert [slide.path.name for slide in slides_in(tmp_path).slides] == [
        "m.mrxs",
        "lone.tif",
        "h.vms",
    ]
    assert [path.name for path in slides_in(tmp_path).left_aside] == ["other.jpg"]


def test_a_dicom_series_is_one_slide(tmp_path, flat_image):
    """Named for its folder where it is alone in it, otherwise for its first file."""
    small = flat_image[::2, ::2]
    for name, image, series, number in (
        ("case7/2.dcm", small, "1.2.5", 2),
        ("case7/1", flat_image, "1.2.5", 1),  # archives give files no ending
        ("two/b1.dcm", flat_image, "1.2.6", 1),
        ("two/a1.dcm", flat_image, "1.2.7", 1),
        ("two/b2.dcm", small, "1.2.6", 2),
        ("top.dcm", flat_image, "1.2.8", 1),
    ):
        write_dicom(tmp_path / name, image, series=series, number=number)
    write_dicom(tmp_path / "case7" / "ct.dcm", small, series="1.2.9", kind=CT_IMAGE)
    touch(tmp_path, "case7/DICOMDIR", "two/broken.dcm")
    assert found_in(tmp_path) == {
        "top": ["top.dcm"],
        "case7": ["case7/1", "case7/2.dcm"],
        "a1": ["two/a1.dcm"],
        "b1": ["two/b1.dcm", "two/b2.dcm"],
    }
    left = {path.name for path in slides_in(tmp_path).left_aside}
    assert left == {"ct.dcm", "DICOMDIR", "broken.dcm"}


def test_a_dicom_folder_is_called(package_folder, flat_image, tmp_path):
    """As the same pixels in a TIFF are, worked out by hand in test_engine.py."""
    write_dicom(tmp_path / "case7" / "1.dcm", flat_image, series="1.2.5")
    write_dicom(tmp_path / "case7" / "2.dcm", flat_image[::2, ::2], series="1.2.5", number=2)
    (slide,) = slides_in(tmp_path).slides
    package = load_package(package_folder)
    inference = infer_slide(slide.path, package, Students(package), slide_id=slide.slide_id)
    assert inference.properties.slide_id == "case7"
    assert (inference.counts.candidate, inference.counts.used) == (80, 20)
    assert inference.score.score == pytest.approx(0.66, abs=0.008)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_what_only_looks_like_a_slide_is_never_opened(tmp_path):
    """A reader of a pipe would wait for ever; a loop of links would have no end."""
    os.mkfifo(tmp_path / "pipe.svs")
    (tmp_path / "device.svs").symlink_to("/dev/zero")
    (tmp_path / "gone.svs").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.svs").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    touch(tmp_path, "a.svs")
    (tmp_path / "linked.svs").symlink_to(tmp_path / "a.svs")
    assert list(found_in(tmp_path)) == ["a", "linked"]


def test_a_folder_without_slides_costs_a_line(tmp_path):
    touch(tmp_path, "docs/a.txt", "slides/b.svs")
    found = find_slides([tmp_path / "docs", tmp_path / "slides", tmp_path / "named.xyz"])
    assert found.unusable == (
        f"{tmp_path / 'docs'}: holds no slide. Name the folder that holds them, or a slide by "
        "itself.",
    )
    assert [slide.slide_id for slide in found.slides] == ["b", "named"]
    assert found.left_aside == (tmp_path / "docs" / "a.txt",)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_a_folder_that_may_not_be_read_is_told(tmp_path):
    touch(tmp_path, "closed/a.svs", "b.svs")
    (tmp_path / "closed").chmod(0)
    found = slides_in(tmp_path)
    (tmp_path / "closed").chmod(0o755)
    assert [slide.slide_id for slide in found.slides] == ["b"]
    assert found.unusable[0].startswith(f"{tmp_path / 'closed'}: cannot be read: Permission")


def test_what_is_said_of_files_left_aside():
    paths = [Path(f"{letter}.txt") for letter in "abcde"]
    assert told_aside([]) == ""
    assert told_aside(paths[:1]) == "1 file that is no slide by name or content, left aside: a.txt."
    assert told_aside(paths) == (
        "5 files that are no slide by name or content, left aside: a.txt, b.txt, c.txt and 2 more."
    )


# Tables.


def table(folder: Path, text: str) -> Path:
    path = folder / "slides.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_gives_ids_and_resolutions(tmp_path):
    path = table(tmp_path, "slide_id,path,mpp\nS1,scans/a.svs,0.25\nS2,/elsewhere/a.svs,\n")
    assert slides_of_table(path) == (
        SlideFile("S1", tmp_path / "scans" / "a.svs", mpp=0.25),
        SlideFile("S2", Path("/elsewhere/a.svs")),
    )


def test_a_table_of_a_training_will_do(tmp_path):
    path = table(tmp_path, "slide_id,path,patient_id,label,site\nS1,a.svs,P1,MSI,north\n")
    assert slides_of_table(path) == (SlideFile("S1", tmp_path / "a.svs"),)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("path\na.svs\n", "", "the column 'slide_id' is missing. Add it."),
        ("slide_id,path,MPP\nS,a,1\n", "", "unknown column 'MPP'. Did you mean 'mpp'?"),
        ("slide_id,path\nS,\n", ":2", "'path' is empty. Fill it in."),
        (
            "slide_id,path\nS,a\nT,b\nS,c\n",
            ":4",
            "slide 'S' stands twice (first on line 2). Give each slide one row and its own "
            "slide_id.",
        ),
        (
            "slide_id,path\n../S,a\n",
            ":2",
            "slide_id '../S' cannot name a folder. Use letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit.",
        ),
        (
            "slide_id,path,mpp\nS,a,0\n",
            ":2",
            "mpp '0' is not a positive number. Write micrometres per pixel, such as 0.25, or "
            "leave the cell empty.",
        ),
        ("slide_id,path,mpp\nS,a,inf\n", ":2", "mpp 'inf' is not a positive number. Write"),
    ],
)
def test_what_is_wrong_in_a_table(tmp_path, text, line, message):
    path = table(tmp_path, text)
    with pytest.raises(TableError) as caught:
        slides_of_table(path)
    assert str(caught.value).startswith(f"{path}{line}: {message}")


@pytest.mark.real_data
def test_a_folder_of_real_slides(real_slides, tmp_path):
    for name in ("highdicom_sm_image.dcm", "CMU-1-Small-Region.svs"):
        (tmp_path / name.partition("_")[0]).mkdir()
        shutil.copy(real_slides / name, tmp_path / name.partition("_")[0] / name)
    assert {slide.slide_id for slide in slides_in(tmp_path).slides} == {
        "highdicom",
        "CMU-1-Small-Region",
    }
