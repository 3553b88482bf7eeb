"""Runs in a process of its own: graph.json + weights.safetensors + calibration.npy -> encoder_int8.tflite, in each
folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file


def _scope(node: dict) -> str:
    """The node's name as TensorFlow takes it: it may not begin with the underscore that torch.fx puts before digits."""
    return node["name"].lstrip("_")


class Network(tf.Module):
    """The graph as TensorFlow operations on NHWC tensors.

    The operation that gives a node's result has the node's name, and whatever else it takes has that name, a dot and
    another: so a tensor of the model can be traced back to its node."""

    def __init__(self, description: dict, tensors: dict[str, np.ndarray]):
        super().__init__()
        self.description = description
        self.tensors = tensors

    @tf.function(autograph=False)
    def __call__(self, image):
        values = {self.description["input"]: image}
        for node in self.description["nodes"]:
            inputs = [values[name] for name in node["inputs"]]
            values[node["name"]] = getattr(self, node["op"])(node, *inputs)
        return values[self.description["output"]]

    def _pad(self, node, x):
        h, w = node["padding"]
        return tf.pad(x, [[0, 0], [h, h], [w, w], [0, 0]], name=f"{_scope(node)}.pad") if h or w else x

    def conv(self, node, x):
        weight = self.tensors[node["name"] + ".weight"].transpose(2, 3, 1, 0)
        x, stride, dilation, name = self._pad(node, x), node["stride"], node["dilation"], _scope(node)
        if node["groups"] == x.shape[3] > 1 and stride[0] == stride[1]:
            h, w, _, out = weight.shape
            weight = weight.reshape(h, w, x.shape[3], out // x.shape[3])
            y = tf.nn.depthwise_conv2d(x, weight, [1, *stride, 1], "VALID", dilations=dilation, name=name)
        else:
            y = tf.nn.conv2d(x, weight, stride, "VALID", dilations=dilation, name=name)
        return tf.nn.bias_add(y, self.tensors[node["name"] + ".bias"], name=f"{name}.bias")

    def max_pool(self, node, x):
        return tf.nn.max_pool2d(self._pad(node, x), node["kernel"], node["stride"], "VALID", name=_scope(node))

    def average_pool(self, node, x):
        return tf.nn.avg_pool2d(self._pad(node, x), node["kernel"], node["stride"], "VALID", name=_scope(node))

    def add(self, node, a, b=None):
        return tf.add(a, node["constant"] if b is None else b, name=_scope(node))

    def sub(self, node, a, b):
        return tf.subtract(a, b, name=_scope(node))

    def mul(self, node, a, b=None):
        return tf.multiply(a, node["constant"] if b is None else b, name=_scope(node))

    def concat(self, node, *parts):
        return tf.concat(parts, 3, name=_scope(node))

    def relu(self, node, x):
        return tf.nn.relu(x, name=_scope(node))

    def relu6(self, node, x):
        return tf.nn.relu6(x, name=_scope(node))

    def hard_swish(self, node, x):
        return tf.multiply(x, tf.multiply(self._gate(node, x), 1 / 6, name=f"{_scope(node)}.sixth"), name=_scope(node))

    def hard_sigmoid(self, node, x):
        return tf.multiply(self._gate(node, x), 1 / 6, name=_scope(node))

    def _gate(self, node, x):
        """Six times the hard sigmoid."""
        return tf.nn.relu6(tf.add(x, 3.0, name=f"{_scope(node)}.plus_3"), name=f"{_scope(node)}.gate")

    def sigmoid(self, node, x):
        return tf.sigmoid(x, name=_scope(node))

    def silu(self, node, x):
        return tf.multiply(x, tf.sigmoid(x, name=f"{_scope(node)}.sigmoid"), name=_scope(node))

    def tanh(self, node, x):
        return tf.tanh(x, name=_scope(node))

    def softmax(self, node, x):
        return tf.nn.softmax(x, name=_scope(node))

    def mean(self, node, x):
        return tf.reduce_mean(x, [1, 2], keepdims=True, name=_scope(node))


def main(folder: Path) -> None:
    description = json.loads((folder / "graph.json").read_text())
    network = Network(description, load_file(folder / "weights.safetensors"))
    calibration = np.load(folder / "calibration.npy", allow_pickle=False).transpose(0, 2, 3, 1)
    c, h, w = description["input_shape"]
    function = network.__call__.get_concrete_function(tf.TensorSpec([1, h, w, c], tf.float32))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in calibration)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    (folder / "encoder_int8.tflite").write_bytes(converter.convert())


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(Path(argument))
