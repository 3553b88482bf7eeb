"""Power cuts while an emulated board learns and saves: which head comes back.

    python benchmarks/power_cuts.py [--cuts N] [--board BOARD] [--features F] [--classes C]

The board learns random features, saves its head after every few, and loses its power: at a random flash operation,
which gets anywhere from nothing to all of its work done, or at a random instruction. Then it is switched on, restores,
and goes on from there. A head other than the last one saved completely, or the one that was being saved, fails the run.
Writes results/power_cuts.json.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import track

from entropi.device import Bundle, HeadConfig
from entropi.device.bundle import Preprocessing
from entropi.device.files import write_json
from entropi.device.library import record_bytes
from entropi.device.toolchain import CORES, ZIG
from entropi.export.image import Centering, write_image
from entropi.export.integer import Network, Tensor
from entropi.firmware_sim import Simulator
from entropi.firmware_sim.flash import STAGES, Cut, PowerCut
from entropi.host.provenance import provenance

RESULT = Path(__file__).resolve().parents[1] / "results" / "power_cuts.json"
MOST_STEPS = 4  # samples learned between two saves
MOST_ROUNDS = 3  # of learning and saving before the power fails


class Session:
    """A board that learns, saves and loses its power; `kept` is the head that was saved last."""

    def __init__(self, board: str, features: int, classes: int, rng: random.Random):
        image, _ = write_image(
            Network({0: Tensor(features, 1, 1, 1.0, 0)}, 0, 0), Centering(np.zeros(features, np.int8), 0.01)
        )
        bundle = Bundle(Path(), image, {}, Preprocessing((0.0,), (1.0,), 1.0, 0))
        head = HeadConfig(classes, batch=1, learning_rate=0.001)
        self.device = Simulator(bundle, board, "100KiB", head=head)
        self.emulator = self.device.emulator
        self._rng, self._samples = rng, np.random.default_rng(0)
        self.finished = 0  # saves
        before = self.emulator.flash.operations
        self.instructions = {"learn": self._count(self.learn), "save": self._count(self.device.save)}
        self.operations = self.emulator.flash.operations - before
        self.kept = self.head()
        self.instructions["restore"] = self._count(self.device.restore)

    def _count(self, function) -> int:
        """Instructions, those of the frames included."""
        before = self.emulator.instructions
        function()
        return self.emulator.instructions - before

    def head(self) -> bytes:
        return self.device.head().tobytes()

    def learn(self) -> None:
        features = self._samples.integers(-99, 99, self.device.info.features).astype(np.int8)
        self.device.learn_features(features, int(self._samples.integers(self.device.head_config.classes)))

    def cut(self, number: int) -> tuple[str, str]:
        """Go on until the power fails, then switch on and restore: when it failed, and which head came back."""
        if number % 2:
            operation = self._rng.randrange(MOST_ROUNDS * self.operations)
            self.emulator.flash.cut(Cut(operation, self._rng.choice(STAGES), number))
        else:
            round_of_learning = MOST_STEPS * self.instructions["learn"] + self.instructions["save"]
            self.emulator.cut_power_after(self._rng.randrange(MOST_ROUNDS * round_of_learning))
        trying, saving = None, False
        try:
            while True:
                for _ in range(self._rng.randint(1, MOST_STEPS)):
                    self.learn()
                trying, saving = self.head(), True
                self.device.save()
                self.kept, trying, saving = trying, None, False
                self.finished += 1
        except PowerCut:
            self.device.power_on()
        self.device.restore()
        found = self.head()
        if found not in (self.kept, trying):
            raise SystemExit(f"cut {number}: a head came back that was never saved")
        which, self.kept = "the last one saved" if found == self.kept else "the one being saved", found
        return ("at a flash operation" if number % 2 else "while saving" if saving else "while learning"), which


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=1000)
    parser.add_argument("--board", default="nucleo-f446re")
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    session = Session(options.board, options.features, options.classes, random.Random(0))
    outcomes: dict[str, Counter[str]] = {}
    for number in track(range(options.cuts), "cutting the power"):
        when, which = session.cut(number)
        outcomes.setdefault(when, Counter())[which] += 1
    board = session.device.board
    pages = session.device.firmware.slots // board.flash_page
    content = {
        "command": f"python benchmarks/power_cuts.py --cuts {options.cuts} --board {options.board} "
        f"--features {options.features} --classes {options.classes}",
        "claim": "after any power cut the head saved last comes back, or the one that was being saved",
        "compiler": ZIG.version,
        "flags": list(ZIG.flags(CORES[board.core])),
        "core": board.core,
        **provenance("ziglang", "unicorn"),
        "flash": {"page_bytes": board.flash_page, "unit_bytes": board.flash_unit},
        "record_bytes": record_bytes(session.device.need),
        "flash_operations_a_save": session.operations,
        "instructions_with_frames": session.instructions,
        "cuts": {when: dict(sorted(counts.items())) for when, counts in sorted(outcomes.items())},
        "saves_finished": session.finished,
        "erases_by_page": session.emulator.flash.erases[-pages:],
    }
    write_json(options.out, content)


if __name__ == "__main__":
    main()
