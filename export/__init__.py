"""Export: a torch encoder -> ONNX, int8 TFLite and the sparse device image, each checked after writing; or the image of
an int8 TFLite model."""

from entropi.export.encoder import CheckError, export_encoder, export_model, export_pixels
from entropi.export.graph import UnsupportedError
from entropi.export.image import ImageError
from entropi.export.onnx import OnnxError
from entropi.export.quality import MAX_DROP, QualityError
from entropi.export.train_signatures import TrainError
from entropi.export.workers import ConversionError

__all__ = [
    "MAX_DROP",
    "CheckError",
    "ConversionError",
    "ImageError",
    "OnnxError",
    "QualityError",
    "TrainError",
    "UnsupportedError",
    "export_encoder",
    "export_model",
    "export_pixels",
]
