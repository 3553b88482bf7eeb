"""Fewer bits for the weights of sparse layers, in the TFLite model itself, so that every runtime computes the same.

The converter spreads the values of each row over all of int8. A sparse row holds few weights, and what coarser values
add to the result is small beside what int8 activations add. With 5 bits, -15 to 15, the codes of weights are shorter,
and cores with DSP instructions sum two outputs in one register (docs/numerics.md)."""

from __future__ import annotations

import numpy as np

from entropi.export.flat import pack, parse

WEIGHT_BITS = 5
INT8_BITS = 8
LEAST_BITS = 3
SPARSE = 0.25  # a layer of a larger share of non-zero weights is left alone: it may well be stored dense


def narrow(model: bytes, bits: int = WEIGHT_BITS) -> bytes:
    """The int8 TFLite model, the weights of its sparse convolutions and fully connected layers rounded to `bits` bits;
    their scales and biases follow. The same bytes where there is none.

    Raises ValueError for bits outside 3 to 8, UnsupportedError where the bytes are no TFLite model."""
    from ai_edge_litert import schema_py_generated as schema

    if not LEAST_BITS <= bits <= INT8_BITS:
        raise ValueError(f"weights of {bits} bits; choose {LEAST_BITS} to {INT8_BITS}")
    content, operators = parse(model), schema.BuiltinOperator
    weighted = (operators.CONV_2D, operators.DEPTHWISE_CONV_2D, operators.FULLY_CONNECTED)
    constants = set()
    for graph in content.subgraphs:
        for op in graph.operators:
            code = content.operatorCodes[op.opcodeIndex]
            if max(code.builtinCode, code.deprecatedBuiltinCode) in weighted and len(op.inputs) > 1:
                constants.add((graph, *(int(index) for index in op.inputs[1:])))
    changed = [_narrow(content, [graph.tensors[i] for i in indices if i >= 0], bits) for graph, *indices in constants]
    return pack(content) if any(changed) else model


def _narrow(content, tensors: list, bits: int) -> bool:
    """Round the weights and, where there is one, the bias. Returns whether anything changed."""
    from ai_edge_litert import schema_py_generated as schema

    weight, *rest = tensors
    if weight.type != schema.TensorType.INT8 or any(t.type != schema.TensorType.INT32 for t in rest):
        return False
    buffers = [content.buffers[t.buffer] for t in tensors]
    if any(b.data is None or len(b.data) == 0 for b in buffers):
        return False
    values = np.frombuffer(bytes(buffers[0].data), np.int8).reshape(weight.shape)
    if np.count_nonzero(values) >= SPARSE * values.size:
        return False
    scales = np.asarray(weight.quantization.scale, np.float32)
    rows = np.moveaxis(values, weight.quantization.quantizedDimension if len(scales) > 1 else 0, 0)
    flat = rows.reshape(len(scales), -1).astype(np.float32)
    factors = np.maximum(np.abs(flat).max(axis=1) / np.float32((1 << bits - 1) - 1), 1)
    if (factors == 1).all():
        return False
    rounded = np.rint(flat / factors[:, None]).astype(np.int8).reshape(rows.shape)
    axis = weight.quantization.quantizedDimension if len(scales) > 1 else 0
    buffers[0].data = np.frombuffer(np.ascontiguousarray(np.moveaxis(rounded, 0, axis)).tobytes(), np.uint8)
    weight.quantization.scale = (scales * factors).tolist()
    for bias, buffer in zip(rest, buffers[1:], strict=True):
        whole = np.frombuffer(bytes(buffer.data), np.int32)
        buffer.data = np.frombuffer(np.rint(whole / factors.astype(float)).astype(np.int32).tobytes(), np.uint8)
        bias.quantization.scale = (np.asarray(bias.quantization.scale, np.float32) * factors).tolist()
    return True
