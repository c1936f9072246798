from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from medkd.errors import ConfigError, OutputError, SlideError
from medkd.inference.maps import MAP_FILES, check_map_kinds, map_files, write_maps


def write(called, folder, kinds):
    return write_maps(called.inference, called.result, folder, kinds, package=called.package)


def test_what_was_asked_for_is_written_and_nothing_else(marked, tmp_path):
    folder = tmp_path / "new" / "slide"
    written = write(marked, folder, ["tiff", "geojson"])
    assert sorted(path.name for path in written) == ["heatmap.geojson", "heatmap.tif"]
    assert sorted(folder.iterdir()) == sorted(written)


def test_an_earlier_map_that_is_not_made_again_is_removed(marked, tmp_path):
    for names in MAP_FILES.values():
        for name in names:
            (tmp_path / name).write_text("of an earlier model")
    (tmp_path / "result.json").write_text("not a map")
    written = write(marked, tmp_path, ["nifti"])
    assert [path.name for path in written] == ["heatmap.nii.gz", "disagreement.nii.gz"]
    names = {"heatmap.nii.gz", "disagreement.nii.gz", "result.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert write(marked, tmp_path, []) == ()
    assert {path.name for path in tmp_path.iterdir()} == {"result.json"}


def test_all_or_none(call, flat_slide, tmp_path):
    """One kind that cannot be made leaves the others as they were."""
    called = call(flat_slide, mpp=0.5)
    write(called, tmp_path, ["geojson"])
    before = (tmp_path / "heatmap.geojson").read_bytes()
    with pytest.raises(SlideError, match="is not a DICOM slide"):
        write(called, tmp_path, ["geojson", "tiff", "dicom"])
    assert [path.name for path in tmp_path.iterdir()] == ["heatmap.geojson"]
    assert (tmp_path / "heatmap.geojson").read_bytes() == before


def test_a_slide_without_a_tile_has_empty_maps(call, write_flat, tmp_path):
    glass = write_flat(tmp_path / "glass.svs", np.full((500, 700, 3), 243, np.uint8), mpp=0.5)
    called = call(glass)
    assert called.result.call == "no result"
    files = map_files(
        called.inference, called.result, ["geojson", "nifti", "tiff"], package=called.package
    )
    assert b'"features":[]' in files["heatmap.geojson"]
    assert list(files) == [
        "heatmap.geojson",
        "heatmap.nii.gz",
        "disagreement.nii.gz",
        "heatmap.tif",
    ]


def test_drawn_slides_and_models_are_told(marked):
    synthetic = marked.result.synthetic.model_copy(update={"slide": True, "model": True})
    result = marked.result.model_copy(update={"synthetic": synthetic})
    files = map_files(
        marked.inference, result, ["geojson", "tiff", "dicom"], package=marked.package
    )
    for name in ("heatmap.geojson", "heatmap.tif", "report.dcm"):
        assert b"Synthetic slide. Model of synthetic slides." in files[name]


def test_an_unknown_kind():
    with pytest.raises(ConfigError) as raised:
        check_map_kinds(["geojson", "png"])
    assert str(raised.value) == (
        "maps: there is no map of the kind 'png'. Choose among geojson, nifti, tiff, dicom."
    )


def test_a_missing_extra(monkeypatch):
    monkeypatch.setattr(
        "medkd.inference.maps.write.find_spec",
        lambda name: None if name == "highdicom" else importlib.util.find_spec(name),
    )
    check_map_kinds(["geojson"])
    with pytest.raises(ConfigError) as raised:
        check_map_kinds(["dicom"])
    assert str(raised.value) == (
        "maps: DICOM maps need highdicom, which is not installed. Install it: pip install "
        "'medkd[dicom]'; or leave dicom out."
    )


def test_a_file_stands_where_the_folder_is_needed(marked, tmp_path):
    (tmp_path / "slide").write_text("")
    with pytest.raises(OutputError, match="a file stands where a folder is needed"):
        write(marked, tmp_path / "slide", ["tiff"])


def test_what_no_one_asked_for_is_not_imported():
    """Neither torch nor what only one format needs, before a map of it is made."""
    code = (
        "import sys, medkd.inference.maps\n"
        "print({'torch', 'nibabel', 'highdicom'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
