import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropi.host.networks import archs
from entropi.host.training import ladder, pruning
from entropi.host.training.schedule import ACCURACY_FALL, ENTROPY_FALL, FLOOR, PATIENCE, PRESETS, Schedule

AUTO = Schedule()  # stop="auto"
LONGEST = len(AUTO.shares())
HIGH, LOW = 0.9, 0.1


def test_presets():
    assert list(PRESETS) == ["paper", "short", "smoke", "demo"]
    paper = PRESETS["paper"]
    assert (paper.epochs_dense, paper.batch, paper.lr, paper.step) == (90, 128, 0.1, 0.75)
    assert (paper.momentum, paper.weight_decay, paper.stop) == (0.9, 1e-4, "auto")
    for preset in PRESETS.values():
        assert preset.plan(0).epochs == preset.epochs_dense and preset.plan(0).samples is None
        assert preset.plan(1) == preset.plan(9) and preset.plan(1).samples == preset.samples_rung
    shares = PRESETS["demo"].shares()
    assert len(shares) == 20 and shares[-2] > 0.005 >= shares[-1]


@given(st.floats(0.01, 0.99), st.floats(1e-4, 0.99) | st.just("auto"))
def test_shares_fall_by_the_step_down_to_the_stop(step, stop):
    shares = Schedule(step=step, stop=stop).shares()
    lowest = FLOOR if stop == "auto" else stop
    assert shares[0] == 1 and shares[-1] <= lowest < shares[-2]
    np.testing.assert_allclose(np.divide(shares[1:], shares[:-1]), step)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 0}, "batch is 0; it must be at least 1"),
        ({"samples_rung": -5}, "samples_rung is -5"),
        ({"lr": -1.0}, "lr is -1.0; it must be above 0"),
        ({"lr_rung": float("nan")}, "lr_rung is nan"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"warm_up": -0.1}, "warm_up is -0.1; it must be at least 0 and below 1"),
        ({"step": 1.0}, "step is 1.0; it must be between 0 and 1, both excluded$"),
        ({"step": "auto"}, "step is auto; it must be between 0 and 1, both excluded$"),
        ({"step": 0.999, "stop": 0.01}, "step is 0.999; down to 0.01 that makes more than 1000 rungs; lower it$"),
        ({"stop": 0.0}, "stop is 0.0; it must be between 0 and 1, both excluded, or auto$"),
        ({"stop": "never"}, "stop is never; it must be between 0 and 1, both excluded, or auto$"),
        ({"precision": "float16"}, "precision is 'float16'; choose from auto, float32, bfloat16"),
        ({"counts": "all"}, "counts is 'all'; choose from weights, parameters"),
    ],
)
def test_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**wrong)


def test_a_number_ends_a_ladder_by_its_length_alone():
    schedule = Schedule(step=0.5, stop=0.1)
    assert [schedule.finished([LOW] * n, [LOW] * n) for n in range(1, 6)] == [False] * 4 + [True]


def test_auto_ends_after_both_have_fallen_for_long_enough():
    fallen = [LOW, HIGH] + [LOW] * PATIENCE
    assert AUTO.finished(fallen, fallen)
    assert not AUTO.finished(fallen[:-1], fallen[:-1])
    assert not AUTO.finished(fallen, [HIGH] * len(fallen))  # only the accuracy
    assert not AUTO.finished([HIGH] * len(fallen), fallen)  # only the entropy
    recovered = [*fallen[:-1], HIGH]
    assert not AUTO.finished(recovered, fallen) and not AUTO.finished(fallen, recovered)
    dense_alone_is_high = [HIGH] + [LOW] * (PATIENCE + 1)
    assert not AUTO.finished(dense_alone_is_high, dense_alone_is_high)
    assert not AUTO.finished([], []) and not AUTO.finished([LOW] * PATIENCE, [LOW] * PATIENCE)


def test_auto_takes_a_small_fall_for_noise():
    high = [0.5] * 5
    for accuracy, entropy, ends in (
        (0.5 - 1.1 * ACCURACY_FALL, 0.5 * (1 - 1.1 * ENTROPY_FALL), True),
        (0.5 - 0.9 * ACCURACY_FALL, 0.5 * (1 - 1.1 * ENTROPY_FALL), False),
        (0.5 - 1.1 * ACCURACY_FALL, 0.5 * (1 - 0.9 * ENTROPY_FALL), False),
    ):
        assert AUTO.finished([1.0, *high, *[accuracy] * PATIENCE], [1.0, *high, *[entropy] * PATIENCE]) == ends


@given(st.lists(st.floats(0, 1), min_size=LONGEST, max_size=LONGEST), st.integers(0, LONGEST), st.booleans())
def test_auto_never_ends_while_one_of_them_grows(values, length, swap):
    grows, anything = sorted(values)[:length], values[:length]
    curves = (anything, grows) if swap else (grows, anything)
    assert AUTO.finished(*curves) == (length == LONGEST)


CURVES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 7)), max_size=LONGEST)


@given(CURVES)
def test_auto_ends_only_where_both_have_fallen(points):
    accuracies, entropies = ([p[i] for p in points] for i in (0, 1))
    if len(points) < LONGEST and AUTO.finished(accuracies, entropies):
        assert max(accuracies[-PATIENCE:]) < max(accuracies) and max(entropies[-PATIENCE:]) < max(entropies)


def test_what_alpha_counts():
    model = archs.build("resnet18", 10)
    weights = pruning.prunable(model)
    whole = sum(w.numel() for w in weights.values())
    everything = sum(p.numel() for p in model.parameters())
    batch_norm, head = 9_600, 512 * 10 + 10  # resnet18 has no other biases
    assert (everything, whole) == (11_181_642, 11_166_912) and everything - whole == batch_norm + head
    nonzeros = 0
    with torch.no_grad():
        for weight in weights.values():
            weight.zero_()
        for weight in weights.values():
            weight.fill_(1)
            nonzeros += weight.numel()
            assert ladder._alpha(model, whole, "weights") == nonzeros / whole
            assert ladder._alpha(model, whole, "parameters") == (batch_norm + head + nonzeros) / everything


def test_a_schedule_survives_json():
    assert Schedule(**dataclasses.asdict(AUTO)) == AUTO
