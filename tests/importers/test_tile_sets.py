"""Tile sets on miniature copies of their layouts, and on the real files at hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medkd.config import load_config
from medkd.datasets.split import check_split, read_split, run_split_stage
from medkd.datasets.tables import read_slides
from medkd.errors import StageError
from medkd.importers.class_folders import import_class_folders
from medkd.importers.names import compile_pattern
from medkd.importers.problems import LayoutError
from medkd.importers.tcga_tiles import import_tcga_tiles
from medkd.importers.tile_folders import import_tile_folders, read_slides_of_any_class
from medkd.slides.imported_tiles import ImportedTiles, read_image, read_import_record
from medkd.slides.store import INDEX_COLUMNS, read_index


def draw(path: Path, level: int = 200, width_px: int = 16, height_px: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height_px, width_px, 3), level, np.uint8)).save(path)
    return path


def barcode(patient: int) -> str:
    return f"TCGA-AA-{3500 + patient}-01Z-00-DX1"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The layout of Zenodo 2530835: per class 5 patients train and 2 test, 3 tiles each."""
    root = tmp_path / "published"
    number = 0
    for role, patients in (("TRAIN", 5), ("TEST", 2)):
        for name in ("MSIMUT", "MSS"):
            for _ in range(patients):
                number += 1
                for tile in range(3):
                    draw(
                        root
                        / f"CRC_DX_{role}_{name}"
                        / f"blk-{'ABC'[tile]}AAAHDQPWYWF-{barcode(number)}.png",
                        level=number,
                    )
    return root


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_the_published_tiles_become_slides_index_and_split(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = import_tcga_tiles(published, out)
    # A fifth of five training patients of each class validates.
    assert summary.counts == {
        ("train", "MSI"): (4, 4, 12),
        ("train", "MSS"): (4, 4, 12),
        ("validation", "MSI"): (1, 1, 3),
        ("validation", "MSS"): (1, 1, 3),
        ("test", "MSI"): (2, 2, 6),
        ("test", "MSS"): (2, 2, 6),
    }
    assert next(iter(summary.counts)) == ("train", "MSI")
    assert (summary.problems, summary.size_px) == ((), 16)

    config = load_config(out / "medkd.yaml")
    assert (config.tile.mpp, config.tile.size_px, config.data.positive) == (0.5, 16, "MSI")
    rows = read_slides(config.data.slides, config.data.classes)
    assert len(rows) == 14
    assert all(row.path.is_dir() and row.site == "AA" for row in rows)
    split = read_split(config.splits_file)
    check_split(split, rows)
    tested = set(split.loc[split["role"] == "test", "patient_id"])
    assert tested == {f"TCGA-AA-{3500 + number}" for number in (11, 12, 13, 14)}

    index = read_index(config.tiles_folder)
    assert index.dtypes[list(INDEX_COLUMNS)].astype(str).to_dict() == INDEX_COLUMNS
    assert len(index) == 42
    assert not index.duplicated(["slide_id", "x", "y"]).any()
    assert set(index["y"]) == {-1}
    assert set(index["x"]) == {0, 1, 2}
    record = read_import_record(config.tiles_folder)
    assert record == ImportedTiles("tcga-tiles", published.absolute(), 16, 0.5, False, True)
    for tile in index.itertuples():
        number = int(tile.slide_id[8:12]) - 3500
        assert (read_image(record.root / tile.image) == number).all()
    with pytest.raises(StageError, match="the split that the tiles were published with is there"):
        run_split_stage(rows, config)
    # Nothing was copied.
    assert files_below(out) == [
        "medkd.yaml",
        "slides.csv",
        "splits.parquet",
        "tiles/import.json",
        "tiles/index.parquet",
    ]


def test_copies_can_be_moved_with_their_index(published: Path, tmp_path: Path) -> None:
    import_tcga_tiles(published, tmp_path / "out", copy=True)
    copies = sorted((tmp_path / "out" / "tiles" / "images").rglob("*.png"))
    assert len(copies) == 42
    # What a power cut left short is copied again, and nothing else.
    copies[0].write_bytes(copies[0].read_bytes()[:20])
    before = copies[1].stat().st_mtime_ns
    import_tcga_tiles(published, tmp_path / "out", copy=True)
    assert copies[0].stat().st_size > 20
    assert copies[1].stat().st_mtime_ns == before
    shutil.rmtree(published)
    (tmp_path / "out").rename(tmp_path / "moved")
    record = read_import_record(tmp_path / "moved" / "tiles")
    index = read_index(tmp_path / "moved" / "tiles")
    assert record is not None
    assert record.root == tmp_path / "moved" / "tiles" / "images"
    assert all(read_image(record.root / image).shape == (16, 16, 3) for image in index["image"])
    rows = read_slides(tmp_path / "moved" / "slides.csv", ("MSS", "MSI"))
    assert all(row.path.is_dir() for row in rows)


def test_an_import_can_be_repeated_and_gives_the_same(published: Path, tmp_path: Path) -> None:
    first = import_tcga_tiles(published, tmp_path / "out")
    names = ("slides.csv", "splits.parquet", "tiles/index.parquet")
    before = [(tmp_path / "out" / name).read_bytes() for name in names]
    again = import_tcga_tiles(published, tmp_path / "out")
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == before
    assert (first.config_kept, again.config_kept) == (False, True)
    other = import_tcga_tiles(published, tmp_path / "other", seed=1)
    assert other.counts == first.counts


def no_barcode(root: Path) -> str:
    path = draw(root / "CRC_DX_TEST_MSS" / "blk-AAAA.png")
    return f"{path}: has no TCGA slide barcode in its name."


def empty_file(root: Path) -> str:
    path = root / "CRC_DX_TEST_MSS" / f"blk-E-{barcode(13)}.png"
    path.touch()
    return f"{path}: is empty."


def no_image(root: Path) -> str:
    path = root / "CRC_DX_TEST_MSS" / f"blk-E-{barcode(13)}.png"
    path.write_text("a page of a proxy")
    return f"{path}: is no image that can be read: cannot identify image file"


def other_size(root: Path) -> str:
    path = draw(root / "CRC_DX_TEST_MSS" / f"blk-E-{barcode(13)}.png", width_px=8)
    return f"{path}: is 8 x 16 px, and most tiles are 16 x 16 px."


def two_labels(root: Path) -> str:
    draw(root / "CRC_DX_TRAIN_MSS" / f"blk-E-{barcode(1)}.png")
    return "patient TCGA-AA-3501: has tiles of MSI (3) and of MSS (1). All of its tiles are left"


def two_roles(root: Path) -> str:
    draw(root / "CRC_DX_TEST_MSIMUT" / f"blk-E-{barcode(1)}.png")
    return "patient TCGA-AA-3501: has tiles of test (1) and of train (3). All of its tiles are left"


@pytest.mark.parametrize(
    ("spoil", "tiles"),
    [
        (no_barcode, 42),
        (empty_file, 42),
        (no_image, 42),
        (other_size, 42),
        (two_labels, 39),
        (two_roles, 39),
    ],
)
def test_what_cannot_be_used_is_one_line_and_the_rest_is_done(
    published: Path, tmp_path: Path, spoil: Callable[[Path], str], tiles: int
) -> None:
    message = spoil(published)
    (problem,) = import_tcga_tiles(published, tmp_path / "out").problems
    assert str(problem).startswith(message)
    assert "\n" not in str(problem)
    assert len(read_index(tmp_path / "out" / "tiles")) == tiles
    told = pd.read_csv(tmp_path / "out" / "tiles" / "import_problems.csv")
    assert told["message"].tolist() == [str(problem)]
    assert told["reason"].tolist() == [problem.reason]


def test_a_file_that_was_cut_off_is_found_by_decoding(published: Path, tmp_path: Path) -> None:
    path = published / "CRC_DX_TEST_MSS" / f"blk-E-{barcode(13)}.png"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:200])
    assert import_tcga_tiles(published, tmp_path / "header").problems == ()
    (problem,) = import_tcga_tiles(published, tmp_path / "decoded", decode=True).problems
    assert str(problem).startswith(f"{path}: is no image that can be read: ")
    with pytest.raises(StageError, match=r"cannot be decoded: .* again with --decode"):
        read_image(path)


def test_another_layout_is_refused_and_nothing_is_written(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(LayoutError) as caught:
        import_tcga_tiles(published.parent, out)
    assert str(caught.value) == (
        f"{published.parent}: holds no folders CRC_DX_{{TRAIN,TEST}}_{{MSIMUT,MSS}} of both "
        "classes (but published). Unpack the archives of the data set side by side, and name the "
        "folder above."
    )
    with pytest.raises(LayoutError, match="no such folder"):
        import_tcga_tiles(published / "absent", out)
    shutil.rmtree(published / "CRC_DX_TRAIN_MSS")
    shutil.rmtree(published / "CRC_DX_TEST_MSS")
    with pytest.raises(LayoutError, match="of both classes"):
        import_tcga_tiles(published, out)
    assert not out.exists()


def test_tiles_that_are_not_square_are_refused(published: Path, tmp_path: Path) -> None:
    for path in published.rglob("*.png"):
        draw(path, width_px=20)
    with pytest.raises(LayoutError, match="most tiles are 20 x 16 px, not square"):
        import_tcga_tiles(published, tmp_path / "out")


def test_other_tiles_and_trained_runs_are_not_overwritten(published: Path, tmp_path: Path) -> None:
    (tmp_path / "tiled" / "tiles").mkdir(parents=True)
    (tmp_path / "tiled" / "tiles" / "index.parquet").touch()
    with pytest.raises(LayoutError, match=r"holds tiles that 'medkd tile' made\. Choose another"):
        import_tcga_tiles(published, tmp_path / "tiled")
    (tmp_path / "run" / "runs" / "kd_ml" / "checkpoints").mkdir(parents=True)
    with pytest.raises(LayoutError, match="kd_ml was trained on the tiles that are there"):
        import_tcga_tiles(published, tmp_path / "run")


def test_records_that_cannot_be_read(tmp_path: Path) -> None:
    assert read_import_record(tmp_path) is None
    for text in ("{", "[]", '{"schema_version": 2}', '{"schema_version": 1}'):
        (tmp_path / "import.json").write_text(text)
        with pytest.raises(StageError, match=r"import.json: is no record of an import: "):
            read_import_record(tmp_path)
    with pytest.raises(StageError, match=r"no such image\. If the tile set was moved, mend 'root'"):
        read_image(tmp_path / "absent.png")


def test_class_folders_with_patterns(tmp_path: Path) -> None:
    for name in ("TUM/p1-s1-a.png", "TUM/p1-s1-b.tif", "TUM/p1-s2-a.png", "NORM/p2-s1-a.jpg"):
        draw(tmp_path / "set" / name)
    draw(tmp_path / "set" / "NORM" / "thumbs.png")
    (tmp_path / "set" / "readme.txt").touch()
    summary = import_class_folders(
        tmp_path / "set",
        tmp_path / "out",
        patient=compile_pattern("^(p[0-9]+)-", "--patient"),
        slide=compile_pattern("^p[0-9]+-s[0-9]+", "--slide"),
        positive="TUM",
        mpp=0.25,
    )
    assert summary.counts == {("", "NORM"): (1, 1, 1), ("", "TUM"): (1, 2, 3)}
    assert [str(problem) for problem in summary.problems] == [
        f"{tmp_path}/set/NORM/thumbs.png: --patient '^(p[0-9]+)-' finds nothing in its name. "
        "Change the pattern, or the name."
    ]
    config = load_config(tmp_path / "out" / "medkd.yaml")
    assert (config.data.classes, config.data.positive) == (("NORM", "TUM"), "TUM")
    rows = read_slides(config.data.slides, config.data.classes)
    assert [(row.slide_id, row.patient_id, row.label) for row in rows] == [
        ("p1-s1", "p1", "TUM"),
        ("p1-s2", "p1", "TUM"),
        ("p2-s1", "p2", "NORM"),
    ]
    assert not config.splits_file.exists()


def test_without_patients_each_image_counts_as_one(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        draw(tmp_path / "set" / name)
    import_class_folders(tmp_path / "set", tmp_path / "out", patient=None)
    config = load_config(tmp_path / "out" / "medkd.yaml")
    assert "The resolution of the tiles is not known" in (tmp_path / "out/medkd.yaml").read_text()
    assert json.loads((tmp_path / "out/tiles/import.json").read_text())["mpp"] is None
    rows = read_slides(config.data.slides, config.data.classes)
    assert [row.slide_id for row in rows] == ["a_1", "a_2", "b_1"]
    assert all(row.path.is_file() for row in rows)


def test_class_folders_of_another_layout(tmp_path: Path) -> None:
    draw(tmp_path / "set" / "only" / "1.png")
    with pytest.raises(LayoutError, match="does not hold two or more folders with images"):
        import_class_folders(tmp_path / "set", tmp_path / "out", patient=None)
    draw(tmp_path / "set" / "b" / "1.png")
    with pytest.raises(LayoutError, match=r"has no class 'c'\. Use one of b, only\."):
        import_class_folders(tmp_path / "set", tmp_path / "out", patient=None, positive="c")
    with pytest.raises(LayoutError, match=r"no tile is left; the first problem: .*finds nothing"):
        import_class_folders(
            tmp_path / "set", tmp_path / "out", patient=compile_pattern("TCGA", "--patient")
        )


@pytest.fixture
def placed(tmp_path: Path) -> Path:
    (tmp_path / "slides.csv").write_text(
        "slide_id,path,patient_id,label,site\ns1,a.svs,p1,MSI,north\nfolder2,b.svs,p2,MSS,\n"
    )
    draw(tmp_path / "set" / "any" / "s1_(10,20).jpg")
    draw(tmp_path / "set" / "any" / "s1_(5,20).jpg")
    draw(tmp_path / "set" / "folder2" / "TCGA-X_(7, 3).png")
    draw(tmp_path / "set" / "s9_(1,1).png")
    return tmp_path


def test_slide_and_place_in_the_name(placed: Path) -> None:
    summary, unknown = import_tile_folders(
        placed / "set",
        read_slides_of_any_class(placed / "slides.csv"),
        placed / "out",
        positive="MSI",
    )
    assert (unknown, summary.problems) == (1, ())
    index = read_index(placed / "out" / "tiles")
    assert [(t.slide_id, t.patient_id, t.x, t.y, t.image) for t in index.itertuples()] == [
        ("folder2", "p2", 7, 3, "folder2/TCGA-X_(7, 3).png"),
        ("s1", "p1", 5, 20, "any/s1_(5,20).jpg"),
        ("s1", "p1", 10, 20, "any/s1_(10,20).jpg"),
    ]
    record = read_import_record(placed / "out" / "tiles")
    assert record is not None
    assert record.has_places
    rows = read_slides(placed / "out" / "slides.csv", ("MSS", "MSI"))
    assert {row.slide_id: row.site for row in rows} == {"s1": "north", "folder2": ""}


def test_names_without_a_place_and_places_taken_twice(placed: Path) -> None:
    draw(placed / "set" / "s1_10_20.jpg")
    draw(placed / "set" / "later" / "s1_(10,20).png")
    rows = read_slides_of_any_class(placed / "slides.csv")
    summary, _ = import_tile_folders(placed / "set", rows, placed / "out", positive="MSI")
    assert sorted(str(problem) for problem in summary.problems) == [
        f"{placed}/set/later/s1_(10,20).png: has the place of any/s1_(10,20).jpg. "
        "Remove one of the two.",
        f"{placed}/set/s1_10_20.jpg: is not named SLIDE_(x,y). Remove it, or give it its name.",
    ]
    with pytest.raises(LayoutError, match="all 5 tiles are of slides that are not in the table"):
        import_tile_folders(placed / "set", {}, placed / "out", positive="MSI")
    with pytest.raises(LayoutError, match=r"holds no image named SLIDE_\(x,y\)"):
        import_tile_folders(placed / "out", rows, placed / "out2", positive="MSI")


@pytest.mark.real_data
def test_the_real_tiles_of_tcga(real_data: Path, tmp_path: Path) -> None:
    (tmp_path / "slides.csv").write_text(
        "slide_id,path,patient_id,label\n"
        + "".join(f"Slide_{n},s{n},p{n},{'MSI' if n < 3 else 'MSS'}\n" for n in (1, 2, 3, 4))
    )
    summary, unknown = import_tile_folders(
        real_data / "tcga_crc_tiles",
        read_slides_of_any_class(tmp_path / "slides.csv"),
        tmp_path / "out",
        positive="MSI",
        decode=True,
    )
    assert (summary.size_px, summary.problems, unknown) == (512, (), 0)
    index = read_index(tmp_path / "out" / "tiles")
    assert len(index) == 8
    assert set(zip(index["x"], index["y"], strict=True)) >= {(9909, 70464), (31929, 90282)}


@pytest.mark.real_data
def test_the_real_classes_of_colorectal_tiles(real_data: Path, tmp_path: Path) -> None:
    summary = import_class_folders(real_data / "crc_tiles", tmp_path / "out", patient=None)
    assert summary.counts == {("", name): (300, 300, 300) for name in ("AC", "H", "S", "T", "V")}
    assert (summary.size_px, summary.problems) == (224, ())
