"""Which rung to take: the one whose output has the highest entropy on the target's training images.

No labels and no training: one forward pass a rung. The default estimator is the spectral entropy; the paper's two
are `marginal` (eq. 8-9) and `joint` (eq. 5-6)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from entropi.device.files import write_json
from entropi.host import entropy
from entropi.host.data import Split
from entropi.host.entropy import Entropy
from entropi.host.ladder import Rung
from entropi.host.progress import Progress
from entropi.host.training import outputs

FORMAT = 1
SELECTION = "selection.json"
ESTIMATORS = ("spectral", "marginal", "joint")


class SelectionError(ValueError):
    """The file is no selection or is damaged."""


@dataclass(frozen=True)
class RungEntropy:
    """What was measured on one rung. `rung` is its index in the ladder, alpha the fraction of weights kept."""

    rung: int
    alpha: float
    nonzeros: int
    source_accuracy: float
    entropy: Entropy


@dataclass(frozen=True)
class Selection:
    """The entropies of all rungs on a target, and the choice. `levels` is the quantiser's M (eq. 3)."""

    ladder: str
    target: str
    estimator: str
    levels: int
    rungs: tuple[RungEntropy, ...]

    @property
    def rung(self) -> int:
        """Index of the chosen rung: the highest entropy, among equals the smallest alpha."""
        best = max(self.rungs, key=lambda r: (getattr(r.entropy, self.estimator), -r.alpha))
        return best.rung

    def save(self, path: str | Path) -> None:
        """Write JSON, atomically. `path` is the file, or a folder, which then gets selection.json."""
        path = Path(path)
        path = path / SELECTION if path.is_dir() else path
        write_json(path, {"format": FORMAT, **dataclasses.asdict(self), "chosen_rung": self.rung})

    @classmethod
    def load(cls, path: str | Path) -> Selection:
        """Read what save wrote. Raises SelectionError where it is missing or damaged."""
        path = Path(path)
        path = path / SELECTION if path.is_dir() else path
        try:
            content = json.loads(path.read_bytes())
            if content["format"] != FORMAT:
                raise SelectionError(f"{path} has format {content['format']}; this version reads {FORMAT}")
            rungs = tuple(RungEntropy(**{**r, "entropy": Entropy(**r["entropy"])}) for r in content["rungs"])
            return cls(content["ladder"], content["target"], content["estimator"], content["levels"], rungs)
        except OSError as error:
            raise SelectionError(f"{path} cannot be read ({error.strerror}); make it with entropi select") from error
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise SelectionError(f"{path} is damaged ({error!r}); make it again with entropi select") from error


def select(
    ladder: Sequence[Rung],
    target_train: Split,
    estimator: str = "spectral",
    *,
    target: str = "",
    levels: int = 4,
    features: Callable[[Rung], Iterable[np.ndarray]] | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Measure every rung on the target's training images and choose one.

    `target` is the name that the selection records. `features` gives a rung's output on the target in chunks of (n, F),
    for a caller who has it or wants to keep it; without it every encoder is run once. `progress` is called before and
    after every rung with (rungs done, rungs in all, text). Raises ValueError for an unknown estimator, an empty ladder
    or target, images of another shape than the ladder's, and features that are not finite."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator {estimator!r} is not known; choose from {', '.join(ESTIMATORS)}")
    if not len(ladder):
        raise ValueError("the ladder has no finished rung; build it first")
    if not len(target_train):
        raise ValueError("the target has no training images; entropy needs at least one")
    if target_train.images.shape[1:] != ladder[0].input_shape:
        raise ValueError(
            f"target images are {target_train.images.shape[1:]} and the ladder takes {ladder[0].input_shape}; "
            "resize them"
        )
    measured = []
    for done, rung in enumerate(ladder):
        if progress:
            progress(done, len(ladder), f"entropy of {rung.name}")
        chunks = features(rung) if features else outputs(rung.encoder(), target_train)
        values = entropy.measure(chunks, levels)
        measured.append(RungEntropy(rung.index, rung.alpha, rung.nonzeros, rung.source_accuracy, values))
    if progress:
        progress(len(ladder), len(ladder), "entropy measured")
    return Selection(str(ladder[0].path.parent.name), target, estimator, levels, tuple(measured))
