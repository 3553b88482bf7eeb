"""builtin:NAME, tasks that need no files: printed characters and handwritten digits."""

from __future__ import annotations

from entropi.host.data.dataset import Dataset


def characters() -> Dataset:
    from entropi.host.data.characters import load

    return load()


def digits() -> Dataset:
    from entropi.host.data.digits import load

    return load()


def digits8x8() -> Dataset:
    from entropi.host.data.digits import load_raw

    return load_raw()
