"""Which rung to take: the smallest of those whose output says as much about the target's training images as any.

One forward pass a rung gives an estimate, in most cases an entropy that needs no labels (entropy.ESTIMATORS). A paired
bootstrap over the images then says which differences between rungs are more than chance. Rungs that have forgotten
their source task can be left out: what is no longer a trained network may have the highest entropy of all."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from entropi.device.files import write_json
from entropi.export.ridge import held_out
from entropi.host.data import Split
from entropi.host.entropy import ALIASES, DEFAULT, ESTIMATORS, LEVELS, Entropy, Features, measure
from entropi.host.networks.inference import outputs
from entropi.host.progress import Progress
from entropi.host.training.ladder import Rung

FORMAT = 2
SELECTION = "selection.json"
PROBE = "probe"
CONFIDENCE = 0.9  # of every interval
QUANTILE = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
FEWEST_DRAWS = 20  # of which one lies beyond each end of a 90 % interval
# An estimate this near its largest possible value says no more; rungs that tie this often are as good as all.
CEILING, NEARLY_ALL = 0.99, 0.8


class SelectionError(ValueError):
    """The file is no selection or is damaged."""


@dataclass(frozen=True)
class RungEntropy:
    """What was measured on one rung.

    rung: its index in the ladder; alpha: fraction of weights kept; probe: held-out accuracy 0..1 of a linear
    classifier, None where it was not asked for; interval: where the chosen estimator's value lies; difference: the
    same for its difference to the best rung's value. Both are None without a bootstrap."""

    rung: int
    alpha: float
    nonzeros: int
    source_accuracy: float
    entropy: Entropy
    probe: float | None = None
    interval: tuple[float, float] | None = None
    difference: tuple[float, float] | None = None

    @property
    def estimates(self) -> dict[str, float]:
        """Everything that was estimated: entropies in nats, and the probe's accuracy."""
        return self.entropy.estimates | ({} if self.probe is None else {PROBE: self.probe})


@dataclass(frozen=True)
class Selection:
    """What was measured on a target, and the choice. All rungs are named by their index in the ladder.

    estimator: the one that chooses; levels: the quantiser's M (eq. 3); bootstrap: how many times the images were
    drawn again, 0 for never; seed: of these draws; at_most: non-zero weights that a rung may have, None for any number;
    source_fall: how far a rung's source accuracy may lie below the best of those, 0..1, before it counts as having
    forgotten."""

    ladder: str
    target: str
    estimator: str
    levels: int
    bootstrap: int
    seed: int
    at_most: int | None
    source_fall: float
    rungs: tuple[RungEntropy, ...]

    @property
    def too_large(self) -> tuple[int, ...]:
        """Rungs of too many weights, which are therefore not chosen."""
        return tuple(r.rung for r in self.rungs if self.at_most is not None and r.nonzeros > self.at_most)

    @property
    def forgotten(self) -> tuple[int, ...]:
        """Of the others those whose source accuracy has fallen too far, which are therefore not chosen."""
        small = [r for r in self.rungs if r.rung not in self.too_large]
        least = max(r.source_accuracy for r in small) - self.source_fall
        return tuple(r.rung for r in small if r.source_accuracy < least)

    @property
    def candidates(self) -> tuple[RungEntropy, ...]:
        """The rungs that are left."""
        return tuple(r for r in self.rungs if r.rung not in (*self.too_large, *self.forgotten))

    @property
    def best(self) -> int:
        """The candidate with the highest estimate, among equals the smallest."""
        return max(self.candidates, key=lambda r: (r.estimates[self.estimator], -r.nonzeros, -r.alpha)).rung

    @property
    def as_good(self) -> tuple[int, ...]:
        """The best rung and all candidates that are not shown to be worse: the interval of the difference reaches 0.
        Without a bootstrap, those with the very same estimate."""
        highest = max(r.estimates[self.estimator] for r in self.candidates)
        return tuple(
            r.rung
            for r in self.candidates
            if (r.difference[1] >= 0 if r.difference else r.estimates[self.estimator] == highest)
        )

    @property
    def rung(self) -> int:
        """The choice: of those as good as the best the smallest, because it costs the device least."""
        good = self.as_good
        return min((r for r in self.rungs if r.rung in good), key=lambda r: (r.nonzeros, r.alpha)).rung

    @property
    def saturated(self) -> bool:
        """Whether several rungs stand at the estimator's ceiling, where it cannot order them: the joint entropy at the
        logarithm of the number of images."""
        return self.estimator == "joint" and len(self._at_ceiling()) > 1

    @property
    def undecided(self) -> bool:
        """Whether the estimator cannot tell the rungs apart: it is saturated, or nearly all are as good as the best."""
        good = len(self.as_good)
        return self.saturated or good > 1 and good >= NEARLY_ALL * len(self.candidates)

    @property
    def explanation(self) -> str:
        """Why this rung, in a sentence."""
        parts = [self._reason()]
        if self.too_large:
            parts.append(f"left out, more than {self.at_most:,} weights: {_listed(self.too_large)}")
        if self.forgotten:
            fall = f"source accuracy more than {self.source_fall:.1%} below the best"
            parts.append(f"left out, {fall}: {_listed(self.forgotten)}")
        return "; ".join(parts)

    def _reason(self) -> str:
        good = self.as_good
        choice = f"{self.rung} is the smallest" if len(good) > 1 else f"{self.rung} is chosen"
        if self.saturated:
            ceiling = math.log(self.rungs[0].entropy.samples)
            return (
                f"undecided: {self.estimator} stands within {1 - CEILING:.0%} of its ceiling, log(images) = "
                f"{ceiling:.2f}, on {len(self._at_ceiling())} of {len(self.candidates)} rungs and cannot order them; "
                f"{choice} of those as good as rung {self.best}, but use another estimator"
            )
        if self.undecided:
            return (
                f"undecided: {self.estimator} finds {len(good)} of {len(self.candidates)} rungs as good as rung "
                f"{self.best}; {choice}; more images, or another estimator, may tell them apart"
            )
        if len(good) > 1:
            within = "within the interval" if self.bootstrap else "to the last digit"
            return f"rungs {_listed(good)} are as good as rung {self.best} {within}; {choice}"
        if self.bootstrap:
            return f"no other rung is as good as rung {self.best} within the interval; {choice}"
        return f"rung {self.best} has the highest {self.estimator}; no bootstrap says which others are as good"

    def _at_ceiling(self) -> list[int]:
        return [r.rung for r in self.candidates if r.estimates["joint"] >= CEILING * math.log(r.entropy.samples)]

    def save(self, path: str | Path) -> None:
        """Write JSON, atomically. `path` is the file, or a folder, which then gets selection.json."""
        path = Path(path)
        path = path / SELECTION if path.is_dir() else path
        write_json(path, {"format": FORMAT, **dataclasses.asdict(self), **self._conclusion()})

    def _conclusion(self) -> dict[str, Any]:
        return {
            "chosen_rung": self.rung,
            "best": self.best,
            "as_good": list(self.as_good),
            "too_large": list(self.too_large),
            "forgotten": list(self.forgotten),
            "undecided": self.undecided,
            "explanation": self.explanation,
        }

    def summary(self) -> dict[str, Any]:
        """The choice, why, and a line for every rung, as `entropi select --json` prints them."""
        names = ("rung", "alpha", "nonzeros", "source_accuracy", "interval", "difference")
        rungs = [
            {**{name: getattr(r, name) for name in names}, **r.estimates, "as_good": r.rung in self.as_good}
            for r in self.rungs
        ]
        settings = {"target": self.target, "estimator": self.estimator, "bootstrap": self.bootstrap}
        return {**settings, **self._conclusion(), "rungs": rungs}

    @classmethod
    def load(cls, path: str | Path) -> Selection:
        """Read what save wrote. Raises SelectionError where it is missing, damaged or of another format."""
        path = Path(path)
        path = path / SELECTION if path.is_dir() else path
        try:
            content = json.loads(path.read_bytes(), parse_constant=_refuse)
            if content["format"] != FORMAT:
                raise SelectionError(
                    f"{path} has format {content['format']} and this version reads {FORMAT}; "
                    "make it again with entropi select"
                )
            fields = {f.name: content[f.name] for f in dataclasses.fields(cls)}
            selection = cls(**{**fields, "rungs": tuple(_read_rung(rung) for rung in content["rungs"])})
            conclusion = selection._conclusion()
            if any(
                content[name] != conclusion[name]
                for name in ("chosen_rung", "best", "as_good", "too_large", "forgotten")
            ):
                raise ValueError("the choice does not follow from the estimates")
            return selection
        except SelectionError:
            raise
        except OSError as error:
            raise SelectionError(f"{path} cannot be read ({error.strerror}); make it with entropi select") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SelectionError(f"{path} is damaged ({error!r}); make it again with entropi select") from error


def select(
    ladder: Sequence[Rung],
    target_train: Split,
    estimator: str = DEFAULT,
    *,
    estimators: Sequence[str] = (),
    bootstrap: int = 50,
    seed: int = 0,
    at_most: int | None = None,
    source_fall: float | None = None,
    target: str = "",
    levels: int = LEVELS,
    features: Callable[[Rung], np.ndarray] | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Measure every rung on the target's training images and choose one.

    `estimator` is a name of entropy.ESTIMATORS; or "probe", the held-out accuracy of a linear classifier, which needs
    labels; or "paper", the paper's own rule to the letter: the highest marginal entropy of all rungs of at most
    `at_most` weights, whatever `bootstrap` and `source_fall` say. `estimators` are measured beside it and decide
    nothing. The images are drawn again `bootstrap` times (0: never), the same draws for every rung. Rungs of more than
    `at_most` non-zero weights are not chosen, and of the others none whose source accuracy (0..1) lies more than
    `source_fall` below the best of them; None: more than by chance, 1: all take part. `target` is the name that the
    selection records. `features` gives a rung's output on the target, (N, F), for a caller who has it or wants to keep
    it; without it every encoder is run once. `progress` is called before and after every rung with (rungs done, rungs
    in all, text).

    One rung's features are held at a time: 4 N F bytes, 51 MB for 10,000 images and 1,280 units, and up to three
    times that while they are measured. Raises ValueError for an unknown estimator, too few draws, an empty ladder or
    target, images of another shape than the ladder's, labels that the probe cannot use, and features that are not
    finite or too few."""
    names = check(estimator, *estimators)
    if estimator in ALIASES:
        bootstrap, source_fall = 0, 1.0
    _check_input(ladder, target_train, bootstrap, at_most, source_fall)
    if source_fall is None:
        small = [rung for rung in ladder if at_most is None or rung.nonzeros <= at_most]
        source_fall = by_chance([rung.source_accuracy for rung in small], ladder[0].source_images)
    if PROBE in names:
        _check_labels(target_train.labels)
    measured, draws = [], np.empty((len(ladder), bootstrap))
    for done, rung in enumerate(ladder):
        if progress:
            progress(done, len(ladder), f"{names[0]} of {rung.name}")
        values = features(rung) if features else outputs(rung.encoder(), target_train)
        if len(values) != len(target_train):
            raise ValueError(f"features of {rung.name} have {len(values)} rows for {len(target_train)} images")
        found = Features(values, levels)
        entropy = measure(found, [name for name in names if name != PROBE])
        right = held_out(found.values, target_train.labels) if PROBE in names else None
        probe = None if right is None else float(right.mean())
        measured.append(RungEntropy(rung.index, rung.alpha, rung.nonzeros, rung.source_accuracy, entropy, probe))
        for draw, index in enumerate(_resamples(len(values), bootstrap, seed)):
            if names[0] == PROBE:
                draws[done, draw] = right[index].mean()
            else:
                draws[done, draw] = ESTIMATORS[names[0]](Features(found.values[index], levels))
    if progress:
        progress(len(ladder), len(ladder), "measured")
    name = str(ladder[0].path.parent.name)
    selection = Selection(name, target, names[0], levels, bootstrap, seed, at_most, source_fall, tuple(measured))
    return _with_intervals(selection, draws) if bootstrap else selection


def by_chance(accuracies: Sequence[float], images: int) -> float:
    """How far below the best of `accuracies` another may lie by chance alone, if both networks are as good as the best:
    half the 90 % interval of a difference of two accuracies, each measured on `images` images."""
    best = (max(accuracies) * images + 1) / (images + 2)  # Laplace's rule: no accuracy is certain
    return QUANTILE * math.sqrt(2 * best * (1 - best) / images)


def check(*estimators: str) -> tuple[str, ...]:
    """The estimators that these names mean, each once. Raises ValueError listing the choices."""
    choices = (*ESTIMATORS, *ALIASES, PROBE)
    for name in estimators:
        if name not in choices:
            raise ValueError(f"estimator {name!r} is not known; choose from {', '.join(choices)}")
    return tuple(dict.fromkeys(ALIASES.get(name, name) for name in estimators))


def _check_input(
    ladder: Sequence[Rung], target_train: Split, bootstrap: int, at_most: int | None, source_fall: float | None
) -> None:
    if source_fall is not None and not 0 <= source_fall <= 1:
        raise ValueError(f"source_fall is {source_fall}; it is a difference of accuracies, between 0 and 1")
    if not (bootstrap == 0 or bootstrap >= FEWEST_DRAWS):
        raise ValueError(f"bootstrap is {bootstrap}; give 0 for no intervals, or at least {FEWEST_DRAWS} draws")
    if not len(ladder):
        raise ValueError("the ladder has no finished rung; build it first")
    fewest = min(rung.nonzeros for rung in ladder)
    if at_most is not None and at_most < fewest:
        raise ValueError(f"at_most is {at_most:,} weights and the smallest rung has {fewest:,}; prune further")
    if not len(target_train):
        raise ValueError("the target has no training images; entropy needs at least one")
    if target_train.images.shape[1:] != ladder[0].input_shape:
        raise ValueError(
            f"target images are {target_train.images.shape[1:]} and the ladder takes {ladder[0].input_shape}; "
            f"give it the option size={ladder[0].input_shape[1]}"
        )


def _check_labels(labels: np.ndarray) -> None:
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"all target labels are {classes[0]}; {PROBE} needs at least 2 classes, so use an entropy")
    if counts.min() < 2:
        raise ValueError(
            f"class {classes[counts.argmin()]} has 1 target image and {PROBE} leaves one out, so it needs at least 2 "
            "of every class; bring more or use an entropy"
        )


def _resamples(samples: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """`count` draws of `samples` indices with replacement, each from (seed, its number) alone."""
    for draw in range(count):
        yield np.random.default_rng((seed, draw)).integers(samples, size=samples)


def _with_intervals(selection: Selection, draws: np.ndarray) -> Selection:
    """Add the intervals, given the estimator's value on every rung (rows) and draw (columns)."""
    estimates = [r.estimates[selection.estimator] for r in selection.rungs]
    best = next(i for i, r in enumerate(selection.rungs) if r.rung == selection.best)
    return dataclasses.replace(
        selection,
        rungs=tuple(
            dataclasses.replace(
                rung,
                interval=_basic(estimate, values),
                difference=_basic(estimate - estimates[best], values - draws[best]),
            )
            for rung, estimate, values in zip(selection.rungs, estimates, draws, strict=True)
        ),
    )


def _basic(estimate: float, draws: np.ndarray) -> tuple[float, float]:
    """The basic (pivotal) bootstrap interval: as far from the estimate as the estimate from its draws, the other way
    round, which takes off the bias that repeated samples bring."""
    low, high = np.quantile(draws, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2), method="weibull")
    return float(2 * estimate - high), float(2 * estimate - low)


def _read_rung(content: dict[str, Any]) -> RungEntropy:
    pairs = {name: tuple(map(float, content[name])) for name in ("interval", "difference") if content[name] is not None}
    if any(len(pair) != 2 for pair in pairs.values()):
        raise ValueError("an interval has two ends")
    estimates = {name: float(value) for name, value in content["entropy"]["estimates"].items()}
    return RungEntropy(**{**content, "entropy": Entropy(**{**content["entropy"], "estimates": estimates}), **pairs})


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


def _listed(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
