"""The comparison of methods, on tiles of plain colours."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from medkd.importers.image_array import ImagePart, write_image_array

_PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
_COLOURS = {"blue": (40, 60, 200), "green": (40, 200, 60), "red": (200, 60, 40)}
_SMALL = (
    *("--teacher", "resnet10", "--teacher-width", "0.125", "--student-width", "0.0625"),
    *("--size-px", "32", "--batch-size", "8", "--epochs", "1", "--seeds", "0"),
)


@pytest.fixture
def compare_methods(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(_PIPELINES)
    # The script sets both for its process; other tests keep theirs.
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    threads = torch.get_num_threads()
    import compare_methods

    yield compare_methods
    torch.set_num_threads(threads)


@pytest.fixture
def comparison_run(compare_methods: ModuleType) -> ModuleType:
    import comparison_run

    return comparison_run


@pytest.fixture
def comparison_data(compare_methods: ModuleType) -> ModuleType:
    import comparison_data

    return comparison_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten tiles of each class: its colour and noise."""
    random = np.random.default_rng(0)
    for name, colour in _COLOURS.items():
        (tmp_path / "tiles" / name).mkdir(parents=True)
        for number in range(10):
            noise = random.integers(-30, 30, (64, 64, 3))
            tile = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(tile).save(tmp_path / "tiles" / name / f"{number}.png")
    return tmp_path / "tiles"


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_runs_are_kept_skipped_and_never_mixed(
    compare_methods: ModuleType,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, page = tmp_path / "runs", tmp_path / "table.md"
    options = ["--tiles", str(folder), "--out", str(out), *_SMALL, "--markdown", str(page)]
    methods = ["--methods", "independent", "sokd"]
    assert compare_methods.main([*options, *methods]) == 0
    first = last_line(capsys)
    assert first["chance"] == pytest.approx(1 / 3)
    assert list(first["methods"]) == ["independent", "sokd"]
    assert list(first["questions"]) == ["sokd: bridge against its teacher"]
    assert "no patients" in page.read_text()
    alone, sokd = (json.loads((out / f"{m}-seed0.json").read_text()) for m in methods[1:])
    assert set(sokd["nodes"]) == {"teacher", "bridge", "student_0", "student_1"}
    assert sokd["trained_first"] == {"teacher": 1}
    # Same first weights, same tiles: trained before or beside the students, it is the same teacher.
    assert sokd["nodes"]["teacher"]["log_loss"] == pytest.approx(
        alone["nodes"]["teacher"]["log_loss"], abs=1e-5
    )

    def refuse(*_: object) -> None:
        pytest.fail("it was trained again")

    with monkeypatch.context() as patch:
        patch.setattr(compare_methods, "run", refuse)
        assert compare_methods.main([*options, *methods]) == 0
        assert last_line(capsys) == first
        assert compare_methods.main([*options, *methods, "--epochs", "2"]) == 2
        assert "made with other settings (epochs: 1, now 2)" in capsys.readouterr().err

    # Only the run that is missing is done, and gives what it gave.
    (out / "sokd-seed0.json").unlink()
    assert compare_methods.main([*options, *methods]) == 0
    again = json.loads((out / "sokd-seed0.json").read_text())
    assert {**again, "cpu_seconds": 0} == {**sokd, "cpu_seconds": 0}


def test_a_method_that_does_not_fit_is_told_and_the_others_go_on(
    compare_methods: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tiles", str(folder), "--out", str(tmp_path / "runs"), *_SMALL, "--students", "1"]
    assert compare_methods.main([*options, "--methods", "dml", "independent"]) == 1
    told = last_line(capsys)
    assert "needs at least two students" in told["failed"]["dml-seed0"]
    assert list(told["methods"]) == ["independent"]


def test_the_split_takes_the_same_share_of_every_class(
    comparison_run: ModuleType, folder: Path
) -> None:
    roles = comparison_run.read_tiles(folder, 16, 0)
    for tiles, count in ((roles.train, 6), (roles.validation, 2), (roles.test, 2)):
        assert torch.bincount(tiles.labels).tolist() == [count] * 3
        assert tiles.images.shape == (3 * count, 3, 16, 16)
    every = torch.cat([roles.train.images, roles.validation.images, roles.test.images])
    assert len(every.flatten(1).unique(dim=0)) == 30
    assert comparison_run.read_tiles(folder, 16, 0).digest == roles.digest
    assert comparison_run.read_tiles(folder, 16, 1).digest != roles.digest


def write_array(out: Path, counts: dict[str, int], side_px: int = 32) -> np.ndarray:
    """An imported array: of each role so many images of each class, in its colour and noise."""
    random = np.random.default_rng(1)
    parts = []
    for role, count in counts.items():
        labels = np.arange(count * len(_COLOURS)) % len(_COLOURS)
        colours = np.array(list(_COLOURS.values()))[labels]
        noise = random.integers(-30, 30, (len(labels), side_px, side_px, 3))
        images = np.clip(colours[:, None, None] + noise, 0, 255).astype(np.uint8)
        parts.append(ImagePart(images, labels, role))
    shape = (len(_COLOURS) * sum(counts.values()), side_px, side_px)
    write_image_array(parts, shape, out, kind="cifar", classes=list(_COLOURS), where="drawn")
    return np.concatenate([part.images for part in parts])


def test_an_imported_array_is_compared_like_a_folder(
    compare_methods: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_array(tmp_path / "cifar", {"train": 10, "test": 4})
    out, page = tmp_path / "runs", tmp_path / "table.md"
    options = ["--tiles", str(tmp_path / "cifar"), "--out", str(out), "--markdown", str(page)]
    small = [option for option in _SMALL if option not in ("--size-px", "32")]
    assert compare_methods.main([*options, *small, "--methods", "independent"]) == 0
    assert list(last_line(capsys)["methods"]) == ["independent"]
    run = json.loads((out / "independent-seed0.json").read_text())
    assert run["settings"]["tiles"] == [27, 3, 12]
    assert (run["settings"]["size_px"], run["settings"]["classes"]) == (32, list(_COLOURS))
    assert "published as such" in page.read_text()
    assert "no patients" not in page.read_text()


def test_an_array_keeps_its_roles_and_pixels(comparison_data: ModuleType, tmp_path: Path) -> None:
    """Without validation images, one of ten in each class becomes one; test images never do."""
    images = write_array(tmp_path / "a", {"train": 10, "test": 4}, side_px=8)
    roles = comparison_data.read_array(tmp_path / "a", None, 0)
    assert torch.bincount(roles.train.labels).tolist() == [9, 9, 9]
    assert torch.bincount(roles.validation.labels).tolist() == [1, 1, 1]
    np.testing.assert_array_equal(roles.test.images.numpy(), images[30:].transpose(0, 3, 1, 2))
    together = torch.cat([roles.train.images, roles.validation.images]).flatten(1)
    wanted = images[:30].transpose(0, 3, 1, 2).reshape(30, -1)
    assert {bytes(row) for row in together.numpy()} == {bytes(row) for row in wanted}
    other = comparison_data.read_array(tmp_path / "a", None, 1)
    assert other.digest != roles.digest
    assert comparison_data.read_array(tmp_path / "a", None, 0).digest == roles.digest
    half = comparison_data.read_array(tmp_path / "a", 4, 0).test.images
    # Each pixel is the mean of four, rounded once along each axis.
    means = images[30:].reshape(12, 4, 2, 4, 2, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(half.numpy(), means, atol=1)


def test_published_validation_images_stay(comparison_data: ModuleType, tmp_path: Path) -> None:
    write_array(tmp_path / "a", {"train": 5, "validation": 3, "test": 2}, side_px=8)
    roles = comparison_data.read_array(tmp_path / "a", None, 0)
    assert [len(tiles) for tiles in (roles.train, roles.validation, roles.test)] == [15, 9, 6]


def test_arrays_that_cannot_be_compared_are_told(
    compare_methods: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tiles", str(tmp_path / "a"), "--out", str(tmp_path / "runs")]
    write_array(tmp_path / "a", {"train": 10}, side_px=8)
    assert compare_methods.main(options) == 2
    assert "a: class blue has no test image. Import a data set" in capsys.readouterr().err
    write_array(tmp_path / "a", {"train": 4, "test": 4}, side_px=8)
    assert compare_methods.main(options) == 2
    assert "a: class blue has no validation image. Import" in capsys.readouterr().err
    (tmp_path / "a" / "images.npy").unlink()
    assert compare_methods.main(options) == 2
    assert "no array of images is there yet" in capsys.readouterr().err


@pytest.mark.parametrize("present", [0, 1, 3])
def test_too_little_to_split_is_refused(
    compare_methods: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], present: int
) -> None:
    for number in range(present):
        (tmp_path / "tiles" / str(number)).mkdir(parents=True)
    options = ["--tiles", str(tmp_path / "tiles"), "--out", str(tmp_path / "runs")]
    assert compare_methods.main(options) == 2
    told = {0: "no such folder", 1: "fewer than two folders", 3: "class 0 has 0 tiles"}
    assert told[present] in capsys.readouterr().err


def test_augmentation_depends_on_seed_epoch_tile_and_view(comparison_run: ModuleType) -> None:
    tiles = comparison_run.Tiles(
        torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8), torch.arange(6)
    )

    def seen(places: list[int], *, seed: int = 0, epoch: int = 0, views: int = 2) -> torch.Tensor:
        made = comparison_run.AugmentedTiles(tiles, seed=seed, epoch=epoch, views=views)
        return made[places]["image"]

    whole = seen([0, 1, 2, 3, 4, 5])
    assert whole.shape == (6, 2, 3, 8, 8)
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert torch.equal(seen([4, 1]), whole[[4, 1]])
    assert torch.equal(seen([3], views=1), whole[[3], 0])
    for other in (seen([2], seed=1), seen([2], epoch=1), whole[[2]].flip(1)):
        assert not torch.equal(other, whole[[2]])


def test_a_square_is_turned_and_mirrored_in_eight_ways(comparison_run: ModuleType) -> None:
    one = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    ways = comparison_run.turned(one.expand(8, 1, 2, 2), torch.arange(8))
    assert torch.equal(ways[0, 0], one)
    assert len(ways.flatten(1).unique(dim=0)) == 8


def test_paired_differences(compare_methods: ModuleType) -> None:
    from comparison_tables import paired

    # Differences 1, 2, 3: standard error 1 / sqrt(3); t is 4.302653 at two degrees of freedom.
    found = paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    half = 4.302653 / 3**0.5
    assert found == {
        "mean": 2.0,
        "seeds": 3,
        "above": 3,
        "low": pytest.approx(2 - half, abs=1e-4),
        "high": pytest.approx(2 + half, abs=1e-4),
    }
    assert paired([0.5], [0.5 + 1e-9]) == {"mean": 0.0, "seeds": 1, "above": 0}


def test_accuracy_is_the_mean_over_classes(comparison_run: ModuleType) -> None:
    right = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    found = comparison_run.figures_of(right, torch.tensor([0, 0, 0, 1]))
    assert found["accuracy"] == pytest.approx(0.5)
    assert found["log_loss"] == pytest.approx(
        -np.log([0.9, 0.8, 0.7, 0.4]).mean(),
        abs=1e-6,
    )
