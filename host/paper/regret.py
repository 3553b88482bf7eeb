"""The study that decides the default estimator: how much accuracy each one's pick loses to the best rung.

Regret is the accuracy of the best rung of a ladder on a target minus that of the rung picked, in points (0.01 of top-1
accuracy). The best of many noisy accuracies is noisy itself, by about its standard error, which stands beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from entropi.host.selection import by_chance

POINT = 0.01
# What an estimator has to beat: never pruning, pruning until the source task is forgotten or as far as the ladder goes,
# and a blind guess.
DENSE, SMALLEST, LAST, BLIND = "dense", "smallest kept", "last rung", "blind guess"


def regrets(survey: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a target of a survey: the best rung, and each estimator's pick and regret in points.

    `select` stands for what entropi select takes: of the rungs that have not forgotten the source task, the smallest as
    good as the default estimator's best; NAME for the highest estimate of all rungs, `NAME, kept` for the highest of
    those that have not forgotten, `smallest kept` for the smallest of these."""
    fit = _kept(survey)
    rows = []
    for name, target in survey["targets"].items():
        accuracy = target["accuracy"]
        best = int(np.argmax(accuracy))
        kept = {f"{n}, kept": max(fit, key=lambda i, v=values: v[i]) for n, values in target["estimates"].items()}
        baselines = {DENSE: 0, SMALLEST: fit[-1], LAST: len(accuracy) - 1}
        picks = {"select": target["chosen"], **target["picks"], **kept, **baselines}
        lost = {rule: (accuracy[best] - accuracy[rung]) / POINT for rule, rung in picks.items()}
        lost[BLIND] = (accuracy[best] - float(np.mean(accuracy))) / POINT
        rows.append(
            {
                "arch": survey["ladder"]["arch"],
                "augment": survey["ladder"]["schedule"]["augment"],
                "seed": survey["ladder"]["seed"],
                "target": name,
                "best": best,
                "best_accuracy": accuracy[best],
                "standard_error": math.sqrt(accuracy[best] * (1 - accuracy[best]) / target["test"]) / POINT,
                "picks": picks,
                "regret": lost,
                "few": {
                    count: {rule: [(accuracy[best] - accuracy[d[rule]]) / POINT for d in drawn] for rule in drawn[0]}
                    for count, drawn in target["few"].items()
                },
            }
        )
    return rows


def _kept(survey: Mapping[str, Any]) -> list[int]:
    accuracies = [rung["source_accuracy"] for rung in survey["rungs"]]
    least = max(accuracies) - by_chance(accuracies, survey["ladder"]["source_test_images"])
    return [i for i, accuracy in enumerate(accuracies) if accuracy >= least]


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """For every rule: mean and largest regret over `rows`, in points, and their number."""
    return {rule: _spread([row["regret"][rule] for row in rows]) for rule in rows[0]["regret"]}


def few_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """The same for selections with few samples a class: samples a class -> rule -> figures."""
    counts = sorted({count for row in rows for count in row["few"]}, key=int)
    return {
        count: {
            rule: _spread([lost for row in rows if count in row["few"] for lost in row["few"][count][rule]])
            for rule in next(row["few"][count] for row in rows if count in row["few"])
        }
        for count in counts
    }


def _spread(values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {"mean": float(np.mean(values)), "worst": float(np.max(values)), "cases": len(values)}
