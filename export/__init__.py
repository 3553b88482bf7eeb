"""Export: a torch encoder -> ONNX, int8 TFLite and the sparse device image, each checked after writing."""

from entropi.export.encoder import CheckError, export_encoder, export_pixels
from entropi.export.graph import UnsupportedError
from entropi.export.image import ImageError
from entropi.export.onnx import OnnxError
from entropi.export.workers import ConversionError

__all__ = [
    "CheckError",
    "ConversionError",
    "ImageError",
    "OnnxError",
    "UnsupportedError",
    "export_encoder",
    "export_pixels",
]
