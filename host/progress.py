"""How long work tells how far it is: progress(done, in all, what is being done)."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
