"""A TFLite model as objects and back, and as the device wants it: with int8 ends."""

from __future__ import annotations

import struct

from entropi.export.graph import UnsupportedError


def parse(model: bytes):
    """The ModelT of TFLite's schema. Raises UnsupportedError where the bytes are no TFLite model, or a damaged one."""
    from ai_edge_litert import schema_py_generated as schema

    try:
        return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0))
    except (struct.error, TypeError, ValueError) as error:
        raise UnsupportedError(
            f"these {len(model)} bytes are no TFLite model, or a damaged one ({error}); give an int8 .tflite file"
        ) from error


def pack(model) -> bytes:
    """The bytes of a ModelT."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _any(numbers) -> bool:
    """Whether a vector of the schema holds anything; an empty one is None."""
    return numbers is not None and len(numbers) > 0


def int8_ends(model: bytes) -> bytes:
    """The model without the QUANTIZE that makes its float32 or uint8 input int8, and without the DEQUANTIZE or QUANTIZE
    that does the opposite at its output; the same bytes where it has neither.

    The device's pixels and features are int8, so it has no use for them. Raises UnsupportedError as `parse`.
    """
    from ai_edge_litert import schema_py_generated as schema

    content = parse(model)
    if len(content.subgraphs) != 1 or not content.subgraphs[0].operators:
        return model
    if not (_any(content.subgraphs[0].inputs) and _any(content.subgraphs[0].outputs)):
        return model
    graph, operators = content.subgraphs[0], schema.BuiltinOperator

    def converts(op, number: int) -> bool:
        """Whether an operator turns int8 (tensor `number` of the op, its input or its output) into another type."""
        code = content.operatorCodes[op.opcodeIndex]
        tensors = (int(op.inputs[0]), int(op.outputs[0]))
        types = [graph.tensors[index].type for index in tensors]
        return (
            max(code.builtinCode, code.deprecatedBuiltinCode) in (operators.QUANTIZE, operators.DEQUANTIZE)
            and types[number] == schema.TensorType.INT8 != types[1 - number]
        )

    removed = []
    for op in graph.operators:
        if not (_any(op.inputs) and _any(op.outputs)):
            continue  # such as what initialises a variable
        at_input = list(op.inputs[:1]) == list(graph.inputs) and converts(op, 1)
        at_output = list(op.outputs) == list(graph.outputs) and converts(op, 0)
        if at_input:
            graph.inputs = list(op.outputs)
        if at_output:
            graph.outputs = list(op.inputs)
        if at_input or at_output:
            removed.append(op)
    if not removed:
        return model
    graph.operators = [op for op in graph.operators if op not in removed]
    content.signatureDefs = None
    return pack(content)
