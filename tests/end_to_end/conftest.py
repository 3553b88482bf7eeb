"""The demo in small, run once: real training, TensorFlow, cross-compiler and emulator on few images."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from small_demo import SCHEDULE, tasks

from entropi.host import demo


@dataclass(frozen=True)
class Demo:
    folder: Path
    content: dict
    bars: list[str]
    lines: list[str]


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory) -> Demo:
    folder = tmp_path_factory.mktemp("demo")
    bars, lines = [], []

    @contextmanager
    def bar(title: str):
        bars.append(title)
        yield lambda done, total, text: None

    content = demo.run(folder, bar, lines.append, tasks=tasks, schedule=SCHEDULE)
    return Demo(folder, content, bars, lines)
