"""The command line: thin layers over the Python API. Exit status 0 ok, 1 failed, 2 wrong use."""

from __future__ import annotations

import os
import sys

import typer
from rich.text import Text

from entropi.host.cli import boards, depth, devices, ladders, paper  # noqa: F401  each adds its commands
from entropi.host.cli.common import app, err
from entropi.host.cli.export import check_app, export_app


def _run(application: typer.Typer) -> None:
    """Run a command; anything it raises becomes one line on standard error and exit status 1."""
    try:
        application()
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if os.environ.get("ENTROPI_DEBUG"):
            raise
        text = str(error)
        if isinstance(error, ImportError):
            text += "; install the extras: pip install 'entropi[sim,tflite]'"
        err.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)
        sys.exit(1)


def main() -> None:
    """The `entropi` command."""
    _run(app)


def export_main() -> None:
    """The `entropi-export` command, which exports unless its first word is `check`."""
    if sys.argv[1:2] == ["check"]:
        sys.argv[:2] = ["entropi-export check"]
        _run(check_app)
    _run(export_app)
