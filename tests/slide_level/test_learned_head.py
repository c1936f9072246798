"""Slide heads run by onnxruntime; the heads here are written by hand, without torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from medkd.errors import ModelPackageError
from medkd.slide_level.learned_head import SlideHeads
from medkd.slide_level.score_interval import Interval


def head(weights: list[float], score: list[float], probability: str = "probability") -> bytes:
    """``sigmoid(sum_k softmax(h . score)_k h_k . weights)``."""
    size = len(weights)
    nodes = [
        helper.make_node("MatMul", ["embeddings", "score"], ["attention_scores"]),
        helper.make_node("Softmax", ["attention_scores"], ["attention"], axis=0),
        helper.make_node("MatMul", ["embeddings", "weights"], ["tile_logits"]),
        helper.make_node("MatMul", ["attention", "tile_logits"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], [probability]),
    ]
    graph = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["tiles", size])],
        [
            helper.make_tensor_value_info(probability, TensorProto.FLOAT, []),
            *(
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tiles"])
                for name in ("attention", "attention_scores", "tile_logits")
            ),
        ],
        [
            numpy_helper.from_array(np.array(values, np.float32), name)
            for name, values in (("weights", weights), ("score", score))
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


HEADS = {"a": head([1.0, 0.0], [0.0, 0.0]), "b": head([2.0], [np.log(3.0)])}
EMBEDDINGS = {
    "a": np.array([[1, 9], [-3, 9]], np.float32),
    "b": np.array([[1], [0]], np.float32),
}


def sigmoid(x: float) -> float:
    return 1 / (1 + float(np.exp(-x)))


def test_scores_and_attention_by_hand() -> None:
    """a weighs tiles alike: logit -1. b weighs 3 to 1: logit 0.75 x 2."""
    found = SlideHeads("attention", HEADS)(EMBEDDINGS)
    assert found.students == pytest.approx({"a": sigmoid(-1), "b": sigmoid(1.5)}, abs=1e-6)
    assert found.score == pytest.approx((sigmoid(-1) + sigmoid(1.5)) / 2, abs=1e-6)
    np.testing.assert_allclose(found.attention, [(0.5 + 0.75) / 2, (0.5 + 0.25) / 2], atol=1e-6)


def test_the_interval_is_that_of_the_three_resamples_there_are() -> None:
    """Two tiles are drawn as 1 1, 1 2 or 2 2; 200 draws have all of them."""
    heads = SlideHeads("attention", {"a": HEADS["a"]})
    found = heads.interval([EMBEDDINGS], resamples=200, interval=Interval(0.9))
    assert (found.score, found.tiles, found.disagreement) == (heads(EMBEDDINGS).score, 2, 0)
    assert found.lower == pytest.approx(sigmoid(-3), abs=1e-6)
    assert found.upper == pytest.approx(sigmoid(1), abs=1e-6)
    assert heads.interval([EMBEDDINGS], resamples=200, interval=Interval(0.9)) == found


def test_both_students_are_drawn_the_same_tiles() -> None:
    """Opposite heads cancel in each tile, so nothing is left to vary but rounding."""
    heads = SlideHeads("attention", {"a": head([1.0], [0.0]), "b": head([-1.0], [0.0])})
    tiles = np.arange(9, dtype=np.float32)[:, None]
    found = heads.interval([{"a": tiles, "b": tiles}], resamples=50, interval=Interval(0.95))
    assert [found.lower, found.score, found.upper] == pytest.approx([0.5] * 3, abs=1e-6)
    assert found.disagreement == pytest.approx(2 * sigmoid(4) - 1, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"b": np.zeros((2, 3), np.float32)},
            "slide head of 'b': embeddings are 2 x 3, not tiles x 1. Use the head that was trained "
            "with this student.",
        ),
        (
            {"b": np.full((2, 1), np.nan, np.float32)},
            "slide head of 'b': gave a probability of nan. Look for embeddings that are not "
            "finite, or use another model.",
        ),
    ],
)
def test_embeddings_that_do_not_fit_are_told(change: dict, message: str) -> None:
    with pytest.raises(ModelPackageError) as caught:
        SlideHeads("attention", HEADS)(EMBEDDINGS | change)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("embeddings", "what"),
    [
        ({"a": EMBEDDINGS["a"]}, "there are no embeddings of 'b'"),
        ({"a": EMBEDDINGS["a"][:1], "b": EMBEDDINGS["b"]}, "unequal numbers of tiles"),
        ({name: tiles[:0] for name, tiles in EMBEDDINGS.items()}, "there is no tile to pool"),
    ],
)
def test_what_cannot_be_scored_is_refused(embeddings: dict, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        SlideHeads("attention", HEADS)(embeddings)


def test_a_resample_without_any_tile_that_counts_has_a_score_all_the_same() -> None:
    """The first tile has all the weight; 37% of the resamples lack it and have logit 0."""
    heads = SlideHeads("attention", {"a": head([1.0], [2000.0])})
    tiles = np.array([[1.0], *[[0.0]] * 99], np.float32)
    found = heads.interval([{"a": tiles}], resamples=500, interval=Interval(0.9))
    assert [found.lower, found.upper] == pytest.approx([0.5, sigmoid(1)], abs=1e-6)


def test_the_highest_tile_that_was_drawn_decides() -> None:
    """Of two tiles a resample lacks the higher one in a quarter of all."""
    heads = SlideHeads("max_embedding", {"a": head([1.0], [1e6])})
    tiles = np.array([[2.0], [-1.0]], np.float32)
    found = heads.interval([{"a": tiles}], resamples=500, interval=Interval(0.9))
    assert [found.lower, found.score, found.upper] == pytest.approx(
        [sigmoid(-1), sigmoid(2), sigmoid(2)], abs=1e-6
    )


def test_no_head_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no slide head"):
        SlideHeads("attention", {})


def test_a_file_that_is_no_head_is_told() -> None:
    with pytest.raises(ModelPackageError) as caught:
        SlideHeads("attention", {"a": b"not ONNX"})
    assert str(caught.value).startswith("slide head of 'a': onnxruntime ")
    assert "cannot load it" in str(caught.value)
    with pytest.raises(ModelPackageError) as caught:
        SlideHeads("attention", {"a": head([1.0], [0.0], probability="p")})
    assert str(caught.value) == (
        "slide head of 'a': takes embeddings and gives attention, attention_scores, p, "
        "tile_logits. Give a head that takes embeddings, and gives probability, attention, "
        "attention_scores, tile_logits."
    )


def test_neither_torch_nor_scipy_is_imported() -> None:
    code = (
        "import sys, medkd.slide_level.learned_head, medkd.slide_level.pooling; "
        "print(sorted({'torch', 'scipy', 'sklearn', 'pandas', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
