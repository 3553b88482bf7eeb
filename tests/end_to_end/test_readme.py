"""The Python example of the README runs on a small ladder, word for word but for what int8 may cost: a network that was
trained for seconds hardly tells images apart, and int8 less so."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_example_runs(small_demo, tmp_path, monkeypatch, capsys):
    example = next(block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "Ladder" in block)
    assert example.count('out="build/r18")') == 1
    example = example.replace('out="build/r18")', 'out="build/r18", max_drop=100)')
    shutil.copytree(small_demo.folder / "ladder", tmp_path / "runs" / "demo" / "ladder")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    accuracy = float(capsys.readouterr().out.split()[0])
    assert 0.3 < accuracy <= 1
    assert (tmp_path / "build" / "r18" / "encoder.entropi").is_file()
