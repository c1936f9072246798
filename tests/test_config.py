"""The configuration: strict, with a message that names the line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medkd.config import Config, config_template, load_config, read_resolved
from medkd.distill.graph import expand
from medkd.distill.method import load_method
from medkd.errors import ConfigError
from medkd.yaml_file import parse_yaml


def write(folder: Path, text: str) -> Path:
    path = folder / "medkd.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_template_is_the_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, config_template()))
    assert config.train == Config().train
    assert config.tile == Config().tile
    assert config.output == tmp_path / "medkd-output"
    assert config.data.slides == tmp_path / "slides.csv"
    assert max(len(line) for line in config_template().splitlines()) <= 100


def test_paths_in_the_file_are_relative_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    path = write(folder, "output: out\ndata: {slides: ../s.csv}\ntrain: {method: mine.yaml}\n")
    monkeypatch.chdir(tmp_path)
    config = load_config(path)
    assert config.output == folder / "out"
    assert config.data.slides == folder / ".." / "s.csv"
    assert config.train.method == str(folder / "mine.yaml")
    assert load_config(path, ("output=elsewhere",)).output == tmp_path / "elsewhere"


def test_assignments_override_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {epochs: 3}\n")
    config = load_config(path, ("train.epochs=5", "train.students.1.width=0.5", "tile.step_px="))
    assert config.train.epochs == 5
    assert [s.width for s in config.train.students] == [1.0, 0.5]
    assert config.tile.step_px is None


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-3", "1E-3", "+.1e-2"])
def test_numbers_with_an_exponent_are_numbers(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, f"train: {{learning_rate: {text}}}\n")
    assert load_config(path).train.learning_rate == pytest.approx(0.001)
    assert load_config(None, (f"train.learning_rate={text}",)).train.learning_rate == 0.001


def test_a_tile_can_be_asked_for_in_micrometres(tmp_path: Path) -> None:
    """256 um over 512 px is 0.5 um/px, in the record as if it had been asked for by mpp."""
    tile = load_config(write(tmp_path, "tile: {size_um: 256, size_px: 512}\n")).tile
    assert (tile.mpp, tile.size_px) == (0.5, 512)
    by_mpp = load_config(write(tmp_path, "tile: {mpp: 0.5, size_px: 512}\n")).tile
    assert tile.recorded() == by_mpp.recorded()
    assert tile.packaged() == by_mpp.packaged()
    default_side = load_config(None, ("tile.size_um=112",)).tile
    assert (default_side.mpp, default_side.size_px) == (0.5, 224)
    agreeing = load_config(None, ("tile.size_um=112", "tile.mpp=0.5")).tile
    assert agreeing.mpp == 0.5


@pytest.mark.parametrize(
    ("tile", "what"),
    [
        (
            "{size_um: 256, mpp: 0.5}",
            "medkd.yaml:1: 'tile': 'size_um' 256 over 'size_px' 224 is 1.14286 um/px, and 'mpp' is "
            "0.5: leave 'mpp' out (or set it to null)",
        ),
        ("{size_um: 0}", "medkd.yaml:1: 'tile.size_um' (it is 0): "),
        ("{size_um: 100, size_px: 0}", "medkd.yaml:1: 'tile.size_px' (it is 0): "),
        ("{size_um: a}", "medkd.yaml:1: 'tile.size_um' (it is 'a'): "),
    ],
)
def test_micrometres_that_make_no_sense_are_told(tmp_path: Path, tile: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, f"tile: {tile}\n"))
    assert what in str(caught.value)


def test_what_a_run_wrote_down_reads_back(tmp_path: Path) -> None:
    config = load_config(None, (f"output={tmp_path}", "train.epochs=7", "tile.mpp=1"))
    text = yaml.safe_dump(config.resolved())
    assert read_resolved(parse_yaml(text, "config.yaml")) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tile:\n  mppp: 1\n", r"medkd.yaml:2: unknown key 'tile.mppp'. Did you mean 'mpp'\?"),
        (
            "colour: red\n",
            r"medkd.yaml:1: unknown key 'colour'. Known here: data, detection, evaluate, infer, ",
        ),
        (
            "tile:\n  mpp: 1\n  mpp: 2\n",
            r"medkd.yaml:3: the key 'tile.mpp' stands twice "
            r"\(first on line 2\). Keep one of the two.",
        ),
        (
            "tile:\n  mpp: half\n",
            r"medkd.yaml:2: 'tile.mpp' \(it is 'half'\): input should be a "
            r"valid number",
        ),
        ("tile:\n  mpp: -1\n", r"medkd.yaml:2: 'tile.mpp' \(it is -1\): input should be greater"),
        (
            "train:\n  epochs: true\n",
            r"medkd.yaml:2: 'train.epochs' \(it is True\): input should "
            r"be a valid integer",
        ),
        (
            "train:\n  students:\n  - {network: a, widht: 1}\n",
            r"medkd.yaml:3: unknown key 'train.students.0.widht'. Did you mean 'width'\?",
        ),
        ("train:\n  students: []\n", r"medkd.yaml:2: 'train.students': tuple should have at least"),
        (
            "split:\n  train: 0.9\n",
            r"medkd.yaml:1: 'split': 'train', 'validation' and 'test' must "
            r"add up to 1",
        ),
        ("data:\n  positive: MSI-H\n", r"medkd.yaml:1: 'data': 'positive' must be one of"),
        ("a: [1\n", r"medkd.yaml:\d: not valid YAML"),
        ("- a\n- b\n", r"medkd.yaml: is not a mapping of keys to values"),
        ("train: {name: ../climbs}\n", r"medkd.yaml:1: 'train.name' \(it is '../climbs'\)"),
    ],
)
def test_a_fault_is_one_line_with_file_line_and_remedy(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert error.match("^" + str(tmp_path) + "/" + message)
    assert "\n" not in str(error.value)


def test_several_faults_are_told_together(tmp_path: Path) -> None:
    path = write(tmp_path, "tile:\n  mppp: 1\ntrain:\n  epochs: 0\n")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert "medkd.yaml:2: unknown key" in lines[0]
    assert "medkd.yaml:4: 'train.epochs' (it is 0)" in lines[1]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("tile.mppp=1", "--set tile.mppp=1: unknown key 'tile.mppp'. Did you mean 'mpp'?"),
        ("epochs", "--set epochs: is not key.path=value. Write it as in --set train.epochs=5."),
        (
            "train.students.7.width=1",
            "--set train.students.7.width=1: 'train.students.7.width' does not lead to a value",
        ),
        ("split.train=0.9", "--set split.train=0.9: 'split': 'train', 'validation' and 'test'"),
    ],
)
def test_a_wrong_assignment_is_named(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, (assignment,))
    assert str(error.value).startswith(message)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.yaml: no such file\. .*medkd config init"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="is a folder, not a file"):
        load_config(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(binary)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "configs").glob("*.yaml")))
def test_the_configurations_that_come_along_are_sound(path: Path) -> None:
    config = load_config(path)
    graph = expand(load_method(config.train.method), len(config.train.students))
    assert {graph.node(name).role for name in graph.deployed} == {"student"}
    assert config.data.slides.name == "slides.csv"
