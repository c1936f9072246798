"""Several ONNX models of the same images as one, so that what they share is computed once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto

INPUT = "tiles"


def fused(models: Mapping[str, ModelProto], takes: str = INPUT) -> ModelProto:
    """Models side by side under one input.

    Args:
        models: by name; each takes ``takes`` and all are of the same opsets.
        takes: name of the input.

    Returns:
        A model that takes ``takes`` and gives ``<name>_<output>`` for each output of each.

    Raises:
        ValueError: there is none, one takes something else, or opsets differ.
    """
    from onnx import compose, helper

    if not models:
        raise ValueError("there is no model to fuse")
    if len({opsets(model) for model in models.values()}) > 1:
        raise ValueError("models of different opsets cannot be one")
    for name, model in models.items():
        if [one.name for one in model.graph.input] != [takes]:
            raise ValueError(f"{name} takes something else than '{takes}'")
    prefixed = [
        compose.add_prefix(model, f"{name}_", rename_inputs=False) for name, model in models.items()
    ]
    graphs = [model.graph for model in prefixed]
    graph = helper.make_graph(
        [node for one in graphs for node in one.node],
        "students",
        list(graphs[0].input),
        [output for one in graphs for output in one.output],
        [initializer for one in graphs for initializer in one.initializer],
    )
    return helper.make_model(
        graph,
        functions=[function for model in prefixed for function in model.functions],
        opset_imports=[helper.make_opsetid(*opset) for opset in opsets(prefixed[0])],
        ir_version=max(model.ir_version for model in prefixed),
    )


def opsets(model: ModelProto) -> tuple[tuple[str, int], ...]:
    """Domain and version of the operators that a model needs."""
    return tuple(sorted((opset.domain, opset.version) for opset in model.opset_import))
