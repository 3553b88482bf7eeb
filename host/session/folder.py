"""The folder of a session: what it keeps, and that it is never mistaken for another.

checkpoint.npz       until the session ends: what the device has computed, learned and counted so far
head.npy             the learned float32 parameters, as Device.head gives them
learning_curve.png   accuracy and loss over the samples
session.json         settings, held-out accuracies, costs and every sample; written last
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from entropi.device import HeadConfig
from entropi.device.files import write_atomically, write_json
from entropi.host.session.figure import session_figure

FORMAT = 2
SESSION, CHECKPOINT, HEAD, CURVE = "session.json", "checkpoint.npz", "head.npy", "learning_curve.png"
OTHER = "give --out another folder, or delete this one"


class SessionError(ValueError):
    """The folder holds another session or something else, or the device does not come to the head that it had."""


@dataclass(frozen=True)
class Settings:
    """What decides how a session ends.

    image_crc32: of the device image; target: as data.load takes it, with its fingerprint; device: the board's name;
    budget: bytes of arena; samples_a_class: of the training split, all of them where it is None; epochs: rounds through
    these samples; every: samples from one held-out accuracy to the next; seed: of the samples' choice and order. The
    head's new classes, the target's last ones, are learned after all rounds through the others.
    """

    image_crc32: str
    target: str
    fingerprint: str
    device: str
    budget: int
    head: HeadConfig
    samples_a_class: int | None = None
    epochs: int = 1
    every: int | None = None
    seed: int = 0


@dataclass
class State:
    """How far a session is.

    held_out, features: int8 [F] of held-out images, and of samples in the order in which they were first met;
    predicted, losses: class and nats of every sample so far, before it was learned; gradings: samples learned, and
    held-out accuracies then; head_crc32: of the head's bytes; tally: Device.tally.
    """

    held_out: list[np.ndarray] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    gradings: list[dict] = field(default_factory=list)
    head_crc32: int = 0
    tally: dict = field(default_factory=dict)

    def pack(self, settings: dict) -> bytes:
        """The state as an .npz, with the settings that it belongs to."""
        notes = {"format": FORMAT, "settings": settings}
        notes |= {name: getattr(self, name) for name in ("gradings", "head_crc32", "tally")}
        arrays = {
            "held_out": np.array(self.held_out, np.int8),
            "features": np.array(self.features, np.int8),
            "predicted": np.array(self.predicted, np.int64),
            "losses": np.array(self.losses, np.float64),
        }
        buffer = io.BytesIO()
        np.savez(buffer, notes=np.array(json.dumps(notes)), **arrays)
        return buffer.getvalue()

    @classmethod
    def unpack(cls, path: Path) -> tuple[State, dict]:
        """The state in an .npz that `pack` made, and its notes."""
        with np.load(path, allow_pickle=False) as arrays:
            notes = json.loads(str(arrays["notes"]))
            state = cls(
                list(arrays["held_out"]),
                list(arrays["features"]),
                arrays["predicted"].tolist(),
                arrays["losses"].tolist(),
                notes["gradings"],
                notes["head_crc32"],
                notes["tally"],
            )
        return state, notes


class SessionFolder:
    """`path` as the folder of a session with these settings: new, interrupted or finished. Nothing is written yet.

    `finished` is what session.json holds, None until then; `state` is how far an interrupted session is. Raises
    SessionError when the folder holds a session of other settings, or anything else.
    """

    def __init__(self, path: str | Path, settings: Settings):
        self.path = Path(path)
        self.settings = asdict(settings)
        self.finished: dict | None = None
        self.state = State()
        try:
            if (self.path / SESSION).exists():
                self.finished = json.loads((self.path / SESSION).read_text())
                self._compare(self.finished)
            elif (self.path / CHECKPOINT).exists():
                self.state, notes = State.unpack(self.path / CHECKPOINT)
                self._compare(notes)
            elif self.path.exists() and any(not path.name.startswith(".") for path in self.path.iterdir()):
                raise SessionError(f"{self.path} is not empty and no session; give --out another folder")
        except NotADirectoryError:
            raise SessionError(f"{self.path} is a file; give --out a folder") from None
        except SessionError:
            raise
        except (KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile):
            raise SessionError(f"{self.path} holds a session that this release cannot read; {OTHER}") from None

    def keep(self) -> None:
        """Write the checkpoint."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / CHECKPOINT, self.state.pack(self.settings))

    def finish(self, content: dict, head: np.ndarray) -> dict:
        """Write everything that stays; returns what session.json holds."""
        content = {"format": FORMAT, "settings": self.settings, **content}
        self.path.mkdir(parents=True, exist_ok=True)
        parameters = io.BytesIO()
        np.save(parameters, head)
        write_atomically(self.path / HEAD, parameters.getvalue())
        session_figure(content, self.path / CURVE)
        write_json(self.path / SESSION, content)
        (self.path / CHECKPOINT).unlink(missing_ok=True)
        self.finished = content
        return content

    def _compare(self, content: dict[str, Any]) -> None:
        if content["format"] != FORMAT:
            raise KeyError("format")
        theirs, ours = _flat(content["settings"]), _flat(self.settings)
        for name in ours:
            if theirs[name] != ours[name]:
                found = f"{name.replace('_', ' ')} {theirs[name]}, not {ours[name]}"
                raise SessionError(f"{self.path} holds a session with {found}; {OTHER}")


def _flat(settings: dict) -> dict:
    """The head's settings beside the session's, None as the command line says it."""
    head = {f"head's {name}": value for name, value in settings["head"].items()}
    return {name: "unset" if value is None else value for name, value in (settings | head).items() if name != "head"}
