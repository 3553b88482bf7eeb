"""What a figure was measured on: it stands beside every result that is kept."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any


def provenance(*packages: str) -> dict[str, Any]:
    """The machine, and the versions of Python and of the named distributions."""
    return {
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "packages": {name: version(name) for name in packages},
    }
