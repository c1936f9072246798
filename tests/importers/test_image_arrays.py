"""CIFAR and MedMNIST become arrays."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medkd.errors import StageError
from medkd.importers.cifar import import_cifar
from medkd.importers.image_array import ImageArray, read_image_array
from medkd.importers.medmnist import import_medmnist
from medkd.importers.problems import LayoutError


def pixel(data: ImageArray, image: int, x: int, y: int) -> list[int]:
    return data.images[image, y, x].tolist()


def binary_image(red: int, green: int, blue: int) -> bytes:
    """Planes of one level each; the pixel (3, 1) is a step lighter."""
    planes = np.stack([np.full((32, 32), level, np.uint8) for level in (red, green, blue)])
    planes[:, 1, 3] += 1
    return planes.tobytes()


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    """CIFAR-10's binary form with 2 images in each of the six files."""
    root = tmp_path / "cifar-10-batches-bin"
    root.mkdir()
    (root / "batches.meta.txt").write_text(
        "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n"
    )
    for at, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        (root / f"{name}.bin").write_bytes(
            bytes([at]) + binary_image(10 * at, 1, 2) + bytes([9]) + binary_image(0, 0, 200)
        )
    return root


def test_cifar_10(ten: Path, tmp_path: Path) -> None:
    summary = import_cifar(ten, tmp_path / "out")
    assert summary.counts["train"] == {
        **dict.fromkeys(["airplane", "automobile", "bird", "cat", "deer"], 1),
        "truck": 5,
    }
    assert summary.counts["test"] == {"dog": 1, "truck": 1}
    data = read_image_array(tmp_path / "out")
    assert (data.images.shape, data.images.dtype) == ((12, 32, 32, 3), np.uint8)
    assert data.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
    assert data.roles.tolist() == ["train"] * 10 + ["test"] * 2
    assert data.classes[9] == "truck"
    assert pixel(data, 8, 0, 0) == [40, 1, 2]
    assert pixel(data, 8, 3, 1) == [41, 2, 3]
    assert pixel(data, 8, 1, 3) == [40, 1, 2]


def test_cifar_100_has_fine_labels(tmp_path: Path) -> None:
    root = tmp_path / "cifar-100-binary"
    root.mkdir()
    (root / "fine_label_names.txt").write_text("\n".join(f"fine{n}" for n in range(100)))
    (root / "coarse_label_names.txt").write_text("\n".join(f"coarse{n}" for n in range(20)))
    (root / "train.bin").write_bytes(bytes([11, 98]) + binary_image(1, 2, 3))
    (root / "test.bin").write_bytes(bytes([4, 0]) + binary_image(5, 6, 7))
    summary = import_cifar(root, tmp_path / "out")
    assert summary.counts == {"train": {"fine98": 1}, "test": {"fine0": 1}}
    assert pixel(read_image_array(tmp_path / "out"), 1, 0, 0) == [5, 6, 7]


def test_cifar_that_cannot_be_used(ten: Path, tmp_path: Path) -> None:
    def message(path: Path = ten) -> str:
        with pytest.raises(LayoutError) as caught:
            import_cifar(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    whole = (ten / "data_batch_3.bin").read_bytes()
    (ten / "data_batch_3.bin").write_bytes(whole[:-1])
    assert "data_batch_3.bin: is cut off: 6145 bytes, 3073 for an image" in message()
    (ten / "data_batch_3.bin").unlink()
    assert "data_batch_3.bin: is not there" in message()
    (ten / "batches.meta.txt").write_text("cat\ndog\n")
    assert "names 2 classes, not 10" in message()
    (ten / "batches.meta.txt").unlink()
    assert "holds neither batches.meta.txt nor fine_label_names.txt" in message()
    (ten / "batches.meta").touch()
    assert "is CIFAR's form for Python: pickles, which can run any code" in message()
    assert message(ten / "absent.parquet").endswith("no such file. Name the file.")


def test_a_wrong_label_writes_nothing_that_could_be_read(ten: Path, tmp_path: Path) -> None:
    import_cifar(ten, tmp_path / "out")
    (ten / "test_batch.bin").write_bytes(bytes([10]) + binary_image(1, 2, 3))
    with pytest.raises(LayoutError, match="has a label 10 and 10 classes"):
        import_cifar(ten, tmp_path / "out")
    with pytest.raises(StageError, match="no array of images is there yet"):
        read_image_array(tmp_path / "out")


def encoded(level: int, side_px: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side_px, side_px), (level, 0, 255)).save(file, "PNG")
    return file.getvalue()


def write_parquet(path: Path, images: list[object], splits: list[str], **extra: object) -> Path:
    content = {"image": images, "label": list(range(len(images))), "split": splits, **extra}
    pq.write_table(pa.table(content), path)
    return path


@pytest.mark.parametrize("wrapped", [False, True])
def test_parquet_of_encoded_images(tmp_path: Path, wrapped: bool) -> None:
    cells: list[object] = [encoded(level) for level in (1, 2, 3)]
    if wrapped:
        cells = [{"bytes": cell, "path": None} for cell in cells]
    path = write_parquet(tmp_path / "a.parquet", cells, ["test", "train", "val"])
    import_cifar(path, tmp_path / "out")
    data = read_image_array(tmp_path / "out")
    assert data.roles.tolist() == ["train", "validation", "test"]
    assert data.labels.tolist() == [1, 2, 0]
    assert [pixel(data, n, 0, 0) for n in range(3)] == [[2, 0, 255], [3, 0, 255], [1, 0, 255]]
    assert data.classes == ("0", "1", "2")


def test_parquet_that_cannot_be_used(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [encoded(1), b"no", b""], ["train"] * 3)
    summary = import_cifar(path, tmp_path / "out")
    told = [str(problem).removeprefix(f"{path}, ") for problem in summary.problems]
    assert told[0].startswith("row 1: is no image that can be read: cannot identify image file")
    assert told[1] == "row 2: is empty. Fetch the file again."
    write_parquet(path, [encoded(1), encoded(2, 9)], ["train"] * 2)
    with pytest.raises(LayoutError, match="its image 1 is 9 x 9 px, the first one 8 x 8 px"):
        import_cifar(path, tmp_path / "out")
    write_parquet(path, [encoded(1)], ["held out"])
    with pytest.raises(LayoutError, match=r"has a split 'held out'\. Use train, val"):
        import_cifar(path, tmp_path / "out")
    pq.write_table(pa.table({"image": [b""], "fine_label": [1]}), path)
    with pytest.raises(LayoutError, match="lacks label, split"):
        import_cifar(path, tmp_path / "out")
    path.write_text("no")
    with pytest.raises(LayoutError, match="is not parquet"):
        import_cifar(path, tmp_path / "out")


def medmnist(path: Path, **changes: np.ndarray) -> Path:
    arrays: dict[str, np.ndarray] = {}
    for role, count in (("train", 3), ("val", 1), ("test", 2)):
        arrays[f"{role}_images"] = np.arange(count * 28 * 28 * 3, dtype=np.uint8).reshape(
            count, 28, 28, 3
        )
        arrays[f"{role}_labels"] = np.arange(count, dtype=np.uint8).reshape(count, 1)
    np.savez_compressed(path, **{**arrays, **changes})
    return path


def test_medmnist_in_colour_and_grey(tmp_path: Path) -> None:
    path = medmnist(tmp_path / "pathmnist.npz")
    summary = import_medmnist(path, tmp_path / "out", classes=["ADI", "BACK", "DEB"])
    assert summary.counts == {
        "train": {"ADI": 1, "BACK": 1, "DEB": 1},
        "validation": {"ADI": 1},
        "test": {"ADI": 1, "BACK": 1},
    }
    data = read_image_array(tmp_path / "out")
    assert data.roles.tolist() == ["train"] * 3 + ["validation"] + ["test"] * 2
    # Image 1, row 2, column 5, counted by hand: ((1 * 28 + 2) * 28 + 5) * 3, modulo 256.
    assert pixel(data, 1, 5, 2) == [((28 + 2) * 28 + 5) * 3 % 256 + n for n in range(3)]
    grey = {
        f"{role}_images": np.full((n, 28, 28), 7, np.uint8)
        for role, n in (("train", 3), ("val", 1), ("test", 2))
    }
    import_medmnist(medmnist(tmp_path / "grey.npz", **grey), tmp_path / "grey")
    data = read_image_array(tmp_path / "grey")
    assert data.classes == ("0", "1", "2")
    assert (data.images == 7).all()
    assert data.images.shape == (6, 28, 28, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": np.zeros((3, 28, 28, 28), np.uint8)}, "not images in grey or colour"),
        ({"train_labels": np.zeros((3, 14), np.uint8)}, "gives each image 14 labels"),
        ({"val_labels": np.zeros((2, 1), np.uint8)}, "has 1 val images and 2 labels"),
        ({"test_images": np.zeros((2, 9, 9, 3), np.uint8)}, "its test images are not 28 x 28 px"),
        ({"val_labels": np.full((1, 1), 3, np.uint8)}, "has 4 classes, and 3 are named"),
    ],
)
def test_medmnist_that_cannot_be_used(
    tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    path = medmnist(tmp_path / "a.npz", **changes)
    with pytest.raises(LayoutError) as caught:
        import_medmnist(path, tmp_path / "out", classes=["a", "b", "c"])
    assert message in str(caught.value)
    assert not (tmp_path / "out" / "images.npy").exists()


def test_what_is_not_medmnist(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name, message in (
        ("text.npz", "is no data set of MedMNIST: it is no .npz file. "),
        ("other.npz", "is no data set of MedMNIST"),
        ("absent.npz", "no such file"),
    ):
        with pytest.raises(LayoutError, match=message):
            import_medmnist(tmp_path / name, tmp_path / "out")


def test_arrays_whose_files_do_not_belong_together(ten: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_cifar(ten, out)
    record = json.loads((out / "images.json").read_text())
    (out / "images.json").write_text(json.dumps({**record, "images": 11}))
    with pytest.raises(StageError, match="holds 12 images and 12 labels"):
        read_image_array(out)
    (out / "images.json").write_text("{}")
    with pytest.raises(StageError, match="is no array of images"):
        read_image_array(out)


@pytest.mark.slow
@pytest.mark.real_data
def test_the_real_parquet_of_cifar_10(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "cifar10_jpeg.parquet"
    summary = import_cifar(path, tmp_path / "out")
    assert {role: set(counts.values()) for role, counts in summary.counts.items()} == {
        "train": {5000},
        "test": {1000},
    }
    assert summary.problems == ()
    data = read_image_array(tmp_path / "out")
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    row = pq.read_table(path).slice(59_999, 1).to_pylist()[0]
    last = int(np.flatnonzero(data.roles == "test")[-1])
    assert (row["split"], row["label"]) == ("test", data.labels[last])
    with Image.open(io.BytesIO(row["image"])) as image:
        assert (np.asarray(image.convert("RGB")) == data.images[last]).all()
