"""Files that are either the old one or the new one, never half of one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, force it to the disk, then take the place of `path` in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


@contextmanager
def staged(folder: Path, last: str, instead_of: Sequence[str] = ()) -> Iterator[Path]:
    """A folder beside `folder` to write into. When the block fails, `folder` is as it was. When it ends, the old `last`
    and the files named in `instead_of` go, and the new files take their places, the one named `last` after all others:
    where it stands, everything belongs together."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        stage = Path(name)
        yield stage
        files = sorted((path for path in stage.rglob("*") if path.is_file()), key=lambda path: path.name == last)
        for name in (last, *instead_of):
            (folder / name).unlink(missing_ok=True)
        for path in files:
            place = folder / path.relative_to(stage)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
