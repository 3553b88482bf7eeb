from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from entropi.host.training.tensors import pack, unpack

FILE = Path("folder/file.safetensors")
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8).filter(
    lambda name: not name.endswith((".index", ".value")) and name != "__metadata__"
)
MOSTLY_ZERO = st.one_of(st.just(0.0), st.just(0.0), st.just(0.0), st.floats(width=32, allow_nan=False))


def tensors():
    shapes = arrays.array_shapes(min_dims=0, max_dims=4, max_side=4)
    kinds = [
        arrays.arrays(np.float32, shapes, elements=MOSTLY_ZERO),
        *(arrays.arrays(kind, shapes) for kind in (np.int64, np.uint8, np.bool_, np.float64)),
    ]
    return st.one_of(*kinds).map(torch.from_numpy)


METADATA = st.dictionaries(st.text().filter(lambda key: key != "sparse"), st.integers() | st.text() | st.none())


@given(st.dictionaries(NAMES, tensors(), max_size=4), METADATA, st.booleans())
def test_round_trip(state, metadata, channels_last):
    if channels_last:
        state = {name: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for name, t in state.items()}
    again, read = unpack(pack(state, metadata), FILE)
    assert read == metadata and again.keys() == state.keys()
    for name, tensor in state.items():
        assert again[name].dtype == tensor.dtype
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert pack(again, read) == pack(state, metadata)  # the same bytes, whatever the memory format


def test_zeros_take_no_room():
    weight = torch.zeros(64, 64, 3, 3)
    weight[0, 0] = 1
    dense, sparse = (len(pack({"w": w}, {})) for w in (torch.ones_like(weight), weight))
    assert dense > 4 * weight.numel() and sparse < 1000


CONTENT = pack({"conv.weight": torch.eye(12).reshape(12, 3, 2, 2), "steps": torch.tensor(7)}, {"rung": 1, "epochs": 2})


@settings(max_examples=500, deadline=None)
@given(st.integers(0, len(CONTENT) - 1), st.integers(0, 7), st.booleans())
def test_damage_is_named_or_harmless(position, bit, cut):
    if cut:
        damaged = CONTENT[:position]
    else:
        damaged = bytearray(CONTENT)
        damaged[position] ^= 1 << bit
    try:
        state, metadata = unpack(bytes(damaged), FILE)
    except ValueError as error:
        assert str(error).startswith(f"{FILE} is damaged") and "\n" not in str(error)
    else:
        assert not cut and isinstance(metadata, dict) and all(isinstance(t, torch.Tensor) for t in state.values())


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"\xff" * 64, b"{}", b"PK\x03\x04" + bytes(100)])
def test_what_pack_did_not_write_is_refused(content):
    with pytest.raises(ValueError, match="is damaged .* delete it"):
        unpack(content, FILE)
