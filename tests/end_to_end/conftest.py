"""The demo in small, run once: real training, TensorFlow, cross-compiler and emulator on few images."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from small_demo import SCHEDULE, tasks

from entropi.host import cli, demo


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

            # Networks trained for seconds hardly tell images apart, and int8 less so.
            demo.run(folder, bar, lambda line: None, tasks=tasks, schedule=SCHEDULE, max_drop=100)
            titles.write_text(json.dumps(bars))
    return Demo(folder, json.loads((folder / "demo.json").read_text()), json.loads(titles.read_text()))


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line in this process: exit status, standard output, standard error."""

    def call(*arguments: object, main=cli.main) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["entropi", *map(str, arguments)])
        monkeypatch.delenv("ENTROPI_DEBUG", raising=False)
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call
