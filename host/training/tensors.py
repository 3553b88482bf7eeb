"""State dicts as safetensors files in which a tensor that is mostly zeros takes the room of its non-zeros.

Such a tensor NAME is stored as NAME.index (int32, flat) and NAME.value (float32), its shape is in the metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise

# safetensors writes several metadata keys in no fixed order, so everything is JSON under this one.
METADATA_KEY = "entropi"


def pack(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> bytes:
    """Tensors and metadata, which must fit JSON, as the bytes of a file."""
    packed, sparse = {}, {}
    for name, tensor in tensors.items():
        dense = tensor.detach().cpu().contiguous()
        if dense.is_floating_point():
            dense = dense + 0  # -0.0 becomes 0.0, as it would by way of index and value
        index = dense.flatten().nonzero()[:, 0]
        if dense.dtype == torch.float32 and 2 * len(index) < dense.numel() < 2**31:
            packed[f"{name}.index"] = index.to(torch.int32)
            packed[f"{name}.value"] = dense.flatten()[index]
            sparse[name] = list(dense.shape)
        else:
            packed[name] = dense
    return serialise(packed, {METADATA_KEY: json.dumps({**metadata, "sparse": sparse}, sort_keys=True)})


def unpack(content: bytes, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors, dense again, and metadata of a file that pack wrote. Raises ValueError naming `path` where it is
    damaged."""
    try:
        packed = parse(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = json.loads(header["__metadata__"][METADATA_KEY])
        tensors = dict(packed)
        for name, shape in metadata.pop("sparse").items():
            dense = torch.zeros(shape)
            dense.view(-1)[tensors.pop(f"{name}.index").long()] = tensors.pop(f"{name}.value")
            tensors[name] = dense
        return tensors, metadata
    except (SafetensorError, LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and build again") from error
