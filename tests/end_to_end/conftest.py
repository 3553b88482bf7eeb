"""The demo in small, run once: real training, TensorFlow, cross-compiler and emulator on few images."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from small_demo import SCHEDULE, tasks

from entropi.host import demo


@dataclass(frozen=True)
class Demo:
    folder: Path
    content: dict
    bars: list[str]


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory, worker_id) -> Demo:
    """One run for all worker processes: the first to ask runs it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    folder, titles = shared / "demo", shared / "bars.json"
    with FileLock(shared / "demo.lock"):
        if not titles.exists():
            bars = []

            @contextmanager
            def bar(title: str):
                bars.append(title)
                yield lambda done, total, text: None

            demo.run(folder, bar, lambda line: None, tasks=tasks, schedule=SCHEDULE)
            titles.write_text(json.dumps(bars))
    return Demo(folder, json.loads((folder / "demo.json").read_text()), json.loads(titles.read_text()))
