"""What tflite-micro makes of every int8 value, for operators that look at one value at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np

from entropi.export.flat import pack
from entropi.export.tflm import run_reference

SIDE = 16  # of the square map that holds all 256 values


def tabulate(model, operators: Sequence) -> list[np.ndarray]:
    """int8 [256] for each of `operators`, parts of the flatbuffer object `model`: the results for -128 ... 127.

    An operator has one int8 input beside scalar constants. All of them run in one model, each on a copy of the values.
    Raises ConversionError where tflite-micro refuses one.
    """
    if not operators:
        return []
    from ai_edge_litert import schema_py_generated as schema

    tensors = model.subgraphs[0].tensors
    graph = schema.SubGraphT()
    graph.tensors, graph.operators, graph.inputs, graph.outputs = [], [], [], []

    def add(index: int, shape: list[int] | None) -> int:
        tensor = copy.copy(tensors[index])
        tensor.shape = tensor.shape if shape is None else shape
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    for operator in operators:
        op = copy.copy(operator)
        op.inputs = []
        for index in operator.inputs:
            constant = model.buffers[tensors[index].buffer].data
            if constant is None or not len(constant):
                op.inputs.append(add(index, [1, SIDE, SIDE, 1]))
                graph.inputs.append(op.inputs[-1])
            else:
                op.inputs.append(add(index, None))
        op.outputs = [add(operator.outputs[0], [1, SIDE, SIDE, 1])]
        graph.outputs.append(op.outputs[0])
        graph.operators.append(op)

    single = copy.copy(model)
    single.subgraphs, single.signatureDefs, single.metadata = [graph], None, None
    values = np.arange(-128, 128).astype(np.int8).reshape(1, 1, SIDE, SIDE)
    found = run_reference(pack(single), values)[0]
    return list(found.reshape(len(operators), math.prod((SIDE, SIDE))))
