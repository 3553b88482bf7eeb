"""Fewer bits for the weights of sparse layers, in the TFLite model itself, so that every runtime computes the same.

The converter spreads the weights of each row over all of int8. With 5 bits, -15 to 15, the codes of sparse rows are
shorter, and linear heads learn no worse (docs/numerics.md, results/weight_bits.json)."""

from __future__ import annotations

from collections import Counter

import numpy as np

from entropi.export.flat import pack, parse

INT8_BITS = 8
LEAST_BITS = 3
WEIGHT_BITS = 5  # what every export takes unless told otherwise
SPARSE = 0.5  # largest share of non-zero weights in a layer that is narrowed


def narrow(model: bytes, bits: int = WEIGHT_BITS) -> bytes:
    """The int8 TFLite model, the weights of its sparse layers rounded to `bits` bits; their scales and biases follow.

    A row keeps its largest weight, which becomes the largest number of `bits` bits. Weights that several operators use
    stay as they are. `model` is one that from_tflite reads; the same bytes come back where there is nothing to round.
    Raises ValueError for bits outside 3 to 8, UnsupportedError where the bytes are no TFLite model."""
    check_bits(bits)
    if bits == INT8_BITS:
        return model
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    content, changed = parse(model), False
    weighted = {BuiltinOperator.CONV_2D, BuiltinOperator.DEPTHWISE_CONV_2D, BuiltinOperator.FULLY_CONNECTED}
    for graph in content.subgraphs:
        uses = Counter(int(i) for op in graph.operators if op.inputs is not None for i in op.inputs)
        for op in graph.operators:
            code = content.operatorCodes[op.opcodeIndex]
            if max(code.builtinCode, code.deprecatedBuiltinCode) not in weighted:
                continue
            constants = [int(i) for i in op.inputs[1:] if i >= 0]  # the weights, and the bias unless there is none
            if all(uses[i] == 1 for i in constants):
                changed |= _narrow(content, *(graph.tensors[i] for i in constants), most=(1 << bits - 1) - 1)
    return pack(content) if changed else model


def check_bits(bits: int) -> None:
    """Raises ValueError where weights cannot have so many."""
    if not LEAST_BITS <= bits <= INT8_BITS:
        raise ValueError(f"weights of {bits} bits; sparse layers take {LEAST_BITS} to {INT8_BITS}")


def _narrow(content, weight, bias=None, *, most: int) -> bool:
    """Round a layer's weights to -most to most if it is sparse; returns whether that changed any."""
    scale = np.asarray(weight.quantization.scale, np.float32)
    axis = weight.quantization.quantizedDimension if len(scale) > 1 else 0
    values = np.frombuffer(bytes(content.buffers[weight.buffer].data), np.int8).reshape(weight.shape)
    if np.count_nonzero(values) > SPARSE * values.size:
        return False
    rows = np.moveaxis(values, axis, 0).astype(np.float32)  # those that share a scale, one after the other
    flat = rows.reshape(len(scale), -1)
    coarser = np.maximum(np.abs(flat).max(axis=1) / np.float32(most), 1)
    if (coarser == 1).all():
        return False
    rounded = np.rint(flat / coarser[:, None]).astype(np.int8).reshape(rows.shape)
    _replace(content, weight, np.moveaxis(rounded, 0, axis), coarser)
    if bias is not None:
        whole = np.frombuffer(bytes(content.buffers[bias.buffer].data), np.int32)
        _replace(content, bias, np.rint(whole / coarser.astype(float)).astype(np.int32), coarser)
    return True


def _replace(content, tensor, values: np.ndarray, coarser: np.ndarray) -> None:
    """Give a tensor other values and coarser scales; and, as equal tensors may share theirs, a buffer of its own."""
    from ai_edge_litert.schema_py_generated import BufferT

    if sum(t.buffer == tensor.buffer for graph in content.subgraphs for t in graph.tensors) > 1:
        tensor.buffer = len(content.buffers)
        content.buffers.append(BufferT())
    content.buffers[tensor.buffer].data = np.frombuffer(values.tobytes(), np.uint8)
    tensor.quantization.scale = np.asarray(tensor.quantization.scale, np.float32) * coarser
