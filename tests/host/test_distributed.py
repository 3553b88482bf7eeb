import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from entropi.host.training.ladder import Ladder

PARTS = Path(__file__).with_name("parts.py")
PROCESSES = 2


def launch(folder, step):
    """(exit status, what each rank noted, errors) of torchrun on parts.py."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*run, PARTS, folder, str(step)], capture_output=True, text=True, env=environment)
    noted = [Path(f"{folder}-rank{rank}.log").read_text().split() for rank in range(PROCESSES)]
    return done.returncode, noted, done.stderr


def test_two_processes_build_the_ladder_of_one(tmp_path, monkeypatch):
    folder = tmp_path / "two"
    status, (first, second), errors = launch(folder, step=7)  # in the second epoch
    assert status != 0 and first == ["ladder.json", "checkpoint.safetensors"] and second == [], errors
    status, (first, second), errors = launch(folder, step=0)
    assert status == 0 and first[-1] == second[-1] == "3", errors
    assert first[0] == "checkpoint.safetensors" and first.count("rung-00.safetensors") == 1
    assert len(second) == 1  # wrote nothing
    assert first[:-1].count("checkpoint.safetensors") == 3  # of the first epoch's there was one

    monkeypatch.syspath_prepend(PARTS.parent)
    one, two = importlib.import_module("parts").build(tmp_path / "one"), Ladder.open(folder)
    assert two.complete and len(one) == len(two) == 3
    assert (one.settings["processes"], two.settings["processes"]) == (1, PROCESSES)
    for rung, other in zip(one, two, strict=True):
        assert (other.alpha, other.nonzeros) == (rung.alpha, rung.nonzeros)
        assert other.source_accuracy == pytest.approx(rung.source_accuracy, abs=1.5 / 144)  # one image more or less
        assert other.source_entropy == pytest.approx(rung.source_entropy, rel=1e-3)
        expected = rung.state()
        for name, tensor in other.state().items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-4)
