"""Detectors that were made by hand: each finds the one bright square in an image, or beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from medkd.inference.detector_package import write_package_of_detector

IMAGE_PX = 64
# Score of the first class, and how far to the right of the square the box is given, pixels.
TWO = {"student_0": (0.9, 0.0), "student_1": (0.5, 0.0)}


def finder_onnx(score: float, shift: float = 0.0, classes: int = 1, size: int = IMAGE_PX) -> bytes:
    """uint8 N x S x S x 3 to one anchor: ``score`` for the first class, and the square's box.

    The box is from the first to the last row and column with a pixel above 127 in all channels;
    without one the score is 0, and the box everything.
    """
    constants = {
        "level": np.array(127, np.float32),
        "channel": np.array([3], np.int64),
        "one": np.array(1, np.float32),
        "score": np.array(score, np.float32),
        "shift": np.array([shift, 0, shift, 0], np.float32),
        "others": np.zeros((1, classes - 1), np.float32),
        "middle": np.array([1], np.int64),
    }

    def edge(of: str, last: int, name: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node(
                "ArgMax", [of], [f"{name}_i"], axis=1, keepdims=1, select_last_index=last
            ),
            helper.make_node("Cast", [f"{name}_i"], [f"{name}_f"], to=TensorProto.FLOAT),
            helper.make_node("Add", [f"{name}_f", "one"], [name])
            if last
            else helper.make_node("Identity", [f"{name}_f"], [name]),
        ]

    def most(of: str, axis: int, name: str) -> list[onnx.NodeProto]:
        constants[f"{name}_axis"] = np.array([axis], np.int64)
        return [helper.make_node("ReduceMax", [of, f"{name}_axis"], [name], keepdims=0)]

    nodes = [
        helper.make_node("Cast", ["images"], ["colours"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMin", ["colours", "channel"], ["darkest"], keepdims=0),
        helper.make_node("Greater", ["darkest", "level"], ["is_bright"]),
        helper.make_node("Cast", ["is_bright"], ["bright"], to=TensorProto.FLOAT),
        *most("bright", 1, "columns"),
        *most("bright", 2, "rows"),
        *edge("columns", 0, "x1"),
        *edge("rows", 0, "y1"),
        *edge("columns", 1, "x2"),
        *edge("rows", 1, "y2"),
        helper.make_node("Concat", ["x1", "y1", "x2", "y2"], ["box"], axis=1),
        helper.make_node("Add", ["box", "shift"], ["moved"]),
        helper.make_node("ReduceMax", ["rows", "middle"], ["any"], keepdims=1),
        helper.make_node("Mul", ["any", "score"], ["first"]),
        helper.make_node("Mul", ["any", "others"], ["rest"]),
        helper.make_node("Concat", ["first", "rest", "moved"], ["flat"], axis=1),
        helper.make_node("Unsqueeze", ["flat", "middle"], ["predictions"]),
    ]
    graph = helper.make_graph(
        nodes,
        "square_finder",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", size, size, 3])],
        [helper.make_tensor_value_info("predictions", TensorProto.FLOAT, ["n", 1, classes + 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def write_finders(
    folder: Path, students: Mapping[str, tuple[float, float]] = TWO, **changes: Any
) -> Path:
    """A package of such students; ``changes`` replace keys of its manifest."""
    classes = changes.get("classes", ["polyp"])
    content = {
        "schema_version": 1,
        "name": "by-hand",
        "version": "1",
        "created": "2026-01-02T03:04:05+00:00",
        "task": "detection",
        "research_use_only": True,
        "classes": classes,
        "image_px": IMAGE_PX,
        "keep_aspect": True,
        "anchors": {"strides": [64], "sizes": [1.0], "ratios": [1.0], "channels": 16},
        "students": [
            {
                "name": name,
                "network": "square_finder",
                "parameters": 0,
                "onnx": f"students/{name}.onnx",
                "safetensors": f"students/{name}.safetensors",
            }
            for name in students
        ],
        "ensemble": {
            "kind": "dense",
            "fusion_iou": 0.55,
            "validation_ap50": {"dense": 0.75, "boxes": 0.5},
        },
        "selection": {"least_score": 0.05, "nms_iou": 0.5, "most": 100},
        "threshold": 0.6,
        "validation": {"ap50": 0.75},
        "provenance": {
            "run_id": "0123456789abcdef",
            "experiment": "tests",
            "run_name": "by-hand",
            "method": "kd_ml",
            "seed": 0,
            "epochs": 1,
            "best_epoch": 1,
            "data_digest": "f" * 64,
            "images": {"train": 3, "validation": 2, "test": 2},
            "boxes": {"train": 3, "validation": 2, "test": 1},
            "images_without_boxes": {"train": 0, "validation": 0, "test": 1},
            "software": "medkd",
            "torch": "2.13.0",
        },
    } | changes
    files = {}
    for name, (score, shift) in students.items():
        files[f"students/{name}.onnx"] = finder_onnx(score, shift, len(classes))
        files[f"students/{name}.safetensors"] = save({"score": np.array([score])})
    write_package_of_detector(folder, content, files)
    return folder


def image_with_square(size: tuple[int, int], box: tuple[int, int, int, int] | None) -> np.ndarray:
    """Black but for a white box x1, y1, x2, y2; ``size`` is width and height."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    if box is not None:
        pixels[box[1] : box[3], box[0] : box[2]] = 255
    return pixels
