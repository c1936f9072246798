"""Bags of embeddings: rows, draws, batches, and what goes to other processes."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from medkd.datasets.bags import collate_bags
from medkd.datasets.embedding_bags import EmbeddingBags
from medkd.errors import StageError

# Row i holds 10 i and 10 i + 1.
ROWS = np.array([[0, 1], [10, 11], [20, 21], [30, 31], [40, 41], [50, 51]], np.float32)
OFFSETS = np.array([0, 2, 5, 6])
LABELS = np.array([0, 1, 1])


def first_of_each(bag: torch.Tensor) -> list[int]:
    return bag[:, 0].int().tolist()


def test_a_bag_has_its_own_rows() -> None:
    bags = EmbeddingBags(ROWS, OFFSETS, LABELS, bag_ids=["B", "A", "C"])
    assert len(bags) == 3
    assert [(b["bag_id"], b["label"], first_of_each(b["embedding"])) for b in bags] == [
        ("B", 0, [0, 10]),
        ("A", 1, [20, 30, 40]),
        ("C", 1, [50]),
    ]
    assert bags[0]["embedding"].dtype == torch.float32
    assert first_of_each(bags[-1]["embedding"]) == [50]
    bags[0]["embedding"].zero_()
    assert ROWS[1, 0] == 10
    with pytest.raises(IndexError):
        bags[3]


def test_what_is_drawn_is_a_function_of_seed_epoch_and_index() -> None:
    places = np.stack([np.arange(6), np.arange(6) * 7], 1)
    bags, again = (
        EmbeddingBags(ROWS, OFFSETS, LABELS, places=places, max_tiles=2, seed=4) for _ in "12"
    )
    draws = [first_of_each(bags[epoch, 1]["embedding"]) for epoch in range(20)]
    assert {tuple(two) for two in draws} == {(20, 30), (20, 40), (30, 40)}
    for epoch in reversed(range(20)):
        bag = again[epoch, 1]
        assert first_of_each(bag["embedding"]) == draws[epoch]
        rows = [level // 10 for level in draws[epoch]]
        assert bag["places"].tolist() == [[row, 7 * row] for row in rows]
    assert first_of_each(bags[1]["embedding"]) == draws[0]
    assert all(first_of_each(bags[epoch, 2]["embedding"]) == [50] for epoch in range(5))


def test_rows_of_a_bag_may_lie_anywhere_and_in_half_precision(tmp_path: Path) -> None:
    """As tiles of a patient's slides do in the file of a run; 0.1 is no float16."""
    np.save(tmp_path / "rows.npy", (ROWS + 0.1).astype(np.float16))
    half = np.load(tmp_path / "rows.npy", mmap_mode="r")
    bags = EmbeddingBags(half, OFFSETS, LABELS, rows=np.array([5, 0, 4, 1, 3, 2]))
    for one in (bags, pickle.loads(pickle.dumps(bags))):
        assert [first_of_each(one[n]["embedding"]) for n in range(3)] == [
            [50, 0],
            [40, 10, 30],
            [20],
        ]
        assert one[0]["embedding"].dtype == torch.float32
        assert one[0]["embedding"][1, 0] == np.float32(np.float16(0.1))


def test_they_are_collated_like_tiles() -> None:
    bags = EmbeddingBags(ROWS, OFFSETS, LABELS)
    batch = collate_bags([bags[0], bags[1]])
    assert batch["embedding"].tolist() == [
        [[0, 1], [10, 11], [0, 0]],
        [[20, 21], [30, 31], [40, 41]],
    ]
    assert batch["mask"].tolist() == [[True, True, False], [True, True, True]]
    assert batch["label"].tolist() == [0, 1]
    assert batch["bag_id"] == ["0", "1"]


def test_embeddings_in_a_file_are_mapped_again_and_not_sent(tmp_path: Path) -> None:
    """Ten thousand rows of 64 are 2.6 MB."""
    rows = np.random.default_rng(0).normal(size=(10_000, 64)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    offsets, labels = np.arange(0, 10_001, 100), np.zeros(100)
    sent = pickle.dumps(EmbeddingBags(mapped, offsets, labels))
    assert len(sent) < 10_000
    np.testing.assert_array_equal(pickle.loads(sent)[7]["embedding"], rows[700:800])
    # A part of the file, as of one role, and a part of that.
    part = pickle.dumps(EmbeddingBags(mapped[2_000:][1_000:2_000], offsets[:11], labels[:10]))
    assert len(part) < 10_000
    np.testing.assert_array_equal(pickle.loads(part)[0]["embedding"], rows[3_000:3_100])
    # What cannot be mapped by itself is sent: columns of it, and changes that are not in the file.
    some = pickle.dumps(EmbeddingBags(mapped[:, :8], offsets, labels))
    np.testing.assert_array_equal(pickle.loads(some)[1]["embedding"], rows[100:200, :8])
    changed = np.load(tmp_path / "rows.npy", mmap_mode="c")
    changed[0, 0] = 99
    sent = pickle.dumps(EmbeddingBags(changed, offsets, labels))
    assert pickle.loads(sent)[0]["embedding"][0, 0] == 99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"embeddings": ROWS.astype(np.float64)},
            "embeddings: the embeddings are float64 of shape 6 x 2. Give float32 or float16, a row "
            "for each tile.",
        ),
        (
            {"embeddings": ROWS[:, 0]},
            "embeddings: the embeddings are float32 of shape 6. Give float32 or float16, a row "
            "for each tile.",
        ),
        (
            {"offsets": [0, 2, 6]},
            "offsets: 3 offsets from 0 to 6 do not fit 3 labels and 6 embeddings. Give one more "
            "than there are labels, from 0 to the number of embeddings.",
        ),
        (
            {"offsets": [0, 2, 5, 7]},
            "offsets: 4 offsets from 0 to 7 do not fit 3 labels and 6 embeddings. Give one more "
            "than there are labels, from 0 to the number of embeddings.",
        ),
        (
            {"offsets": [0, 3, 3, 6]},
            "offsets: 1 bags have no embedding (the first is number 1). Leave these bags out; "
            "offsets must ascend.",
        ),
        (
            {"bag_ids": ["A"]},
            "bag_ids: there are 1 bag_ids, and 3 are needed. Give one for each bag, and one place "
            "for each embedding.",
        ),
        (
            {"rows": [0, 1, 2, 3, 4, 6]},
            "rows: rows from 0 to 6 do not fit 6 embeddings. Give numbers of embeddings, counted "
            "from 0.",
        ),
        (
            {"rows": [0, 1, 2]},
            "offsets: 4 offsets from 0 to 6 do not fit 3 labels and 3 embeddings. Give one more "
            "than there are labels, from 0 to the number of embeddings.",
        ),
        (
            {"places": np.zeros((5, 2))},
            "places: there are 5 places, and 6 are needed. Give one for each bag, and one place "
            "for each embedding.",
        ),
    ],
)
def test_arrays_that_do_not_belong_together_are_told(change: dict, message: str) -> None:
    arrays = {"embeddings": ROWS, "offsets": OFFSETS, "labels": LABELS}
    with pytest.raises(StageError) as caught:
        EmbeddingBags(**(arrays | change))
    assert str(caught.value) == message


def test_an_embedding_that_is_not_finite_is_told() -> None:
    rows = ROWS.copy()
    rows[3, 1] = np.nan
    bags = EmbeddingBags(rows, OFFSETS, LABELS, bag_ids=["B", "A", "C"])
    assert first_of_each(bags[0]["embedding"]) == [0, 10]
    with pytest.raises(StageError) as caught:
        bags[1]
    assert str(caught.value) == (
        "bag 'A': an embedding is not finite. Embed the tiles of this bag again."
    )
