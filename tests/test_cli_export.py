from __future__ import annotations

import pytest

from medkd.cli_export import export
from medkd.errors import ConfigError, OutputError
from medkd.export.kinds import ExportKind
from tests.inference.conftest import make_package, medkd, package_folder  # noqa: F401  (fixtures)


def test_what_was_written_is_told(package_folder, tmp_path, capsys):  # noqa: F811
    export(package_folder, to=ExportKind.ONNX, out=tmp_path / "out")
    told = capsys.readouterr().out
    assert "model.onnx" in told
    assert "ONNX opset 18, IR version 10." in told
    assert "Held against the ONNX students of the package on 20 drawn tiles: no probability" in told
    assert told.endswith(f"Export: {tmp_path / 'out'}\n")


@pytest.mark.parametrize("options", [{"int8": True}, {"calibrate": "tiles"}])
def test_int8_needs_tiles(options, tmp_path):
    with pytest.raises(ConfigError) as error:
        export(tmp_path, to=ExportKind.ONNX, out=tmp_path / "out", **options)
    assert str(error.value) == (
        "medkd export: --int8 and --calibrate go together. Ranges of 8-bit integers are set on "
        "tiles: give both, or neither."
    )


def test_nothing_is_written_over(package_folder, tmp_path):  # noqa: F811
    with pytest.raises(OutputError) as error:
        export(package_folder, to=ExportKind.ONNX, out=tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: is there already, and no version of a model is written over. Name a folder "
        "that does not exist yet."
    )
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_kind_and_no_package(medkd, tmp_path):  # noqa: F811
    unknown = medkd("export", tmp_path, "--to", "coreml", "--out", tmp_path / "out")
    assert unknown.returncode == 2
    assert "'coreml' is not one of" in unknown.stderr
    none = medkd("export", tmp_path, "--to", "onnx", "--out", tmp_path / "out")
    assert none.returncode == 2
    assert none.stderr == (
        f"error: {tmp_path}: is not a model package (it has no model.json). Name the folder "
        "'model' of a finished run; 'medkd train' and 'medkd aggregate' write it.\n"
    )
