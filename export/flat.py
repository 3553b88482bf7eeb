"""A TFLite model as objects and back, and as the device wants it: with int8 ends."""

from __future__ import annotations

from entropi.export.graph import UnsupportedError


def parse(model: bytes):
    """The ModelT of TFLite's schema. Raises UnsupportedError where the bytes are no TFLite model, or a damaged one."""
    from ai_edge_litert import schema_py_generated as schema

    try:
        content = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0))
        _check_references(content)
        return content
    except Exception as error:  # whatever reading beyond a damaged file gives
        raise UnsupportedError(
            f"these {len(model)} bytes are no TFLite model, or a damaged one ({error}); give an int8 .tflite file"
        ) from error


def _check_references(content) -> None:
    """Raises ValueError where a number names no tensor, buffer or operator code, or text is none."""
    for graph in content.subgraphs:
        for tensor in graph.tensors:
            tensor.name.decode()
            _in_range("buffer", [tensor.buffer], 0, content.buffers)
        for numbers in (graph.inputs, graph.outputs):
            _in_range("tensor", numbers, 0, graph.tensors)
        for op in graph.operators:
            _in_range("operator code", [op.opcodeIndex], 0, content.operatorCodes)
            _in_range("tensor", op.inputs, -1, graph.tensors)  # -1 stands for none
            _in_range("tensor", op.outputs, 0, graph.tensors)


def _in_range(what: str, numbers, least: int, among: list) -> None:
    for number in () if numbers is None else numbers:
        if not least <= number < len(among):
            raise ValueError(f"{what} {number} of {len(among)}")


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
