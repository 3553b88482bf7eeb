"""Programs that run in a process of their own, because they are slow to load or can crash."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import dropwhile
from pathlib import Path

TFLM = "tensorflow/lite/micro/"  # in every complaint of tflite-micro


class ConversionError(RuntimeError):
    """TensorFlow's converter or an interpreter failed; the message holds the end of what it printed."""


def _reason(printed: str) -> str:
    """The exception in what a worker printed, on one line, and what tflite-micro said before it; after a crash without
    an exception, the last lines."""
    before, traceback, after = printed.rpartition("Traceback (most recent call last):\n")
    if not traceback:
        return " | ".join(printed.split("\n")[-4:])
    message = [line.strip() for line in dropwhile(lambda line: line.startswith(" "), after.splitlines())]
    said = [line.strip() for line in before.splitlines() if TFLM in line]
    return " | ".join(message[:1] + message[1:][-1:] + said[-1:])


def run_worker(module: str, *folders: Path) -> str:
    """Run `module`, a file of this folder, on each of `folders`, which hold what it reads and where it writes; what it
    printed.

    Raises ConversionError."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}
    # By path, so that the process does not import this package and torch with it; -P keeps this folder off sys.path.
    worker = Path(__file__).with_name(f"{module}.py")
    done = subprocess.run([sys.executable, "-P", worker, *folders], capture_output=True, text=True, env=environment)
    if done.returncode:
        what = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
        raise ConversionError(f"{module} ended with {what}: {_reason(done.stderr.strip())}")
    return done.stdout + done.stderr
