"""The plan for a head in a budget."""

from __future__ import annotations

import pytest
from heads import head_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from entropi.device import DeviceError, HostDevice, measure, plan_head
from entropi.device.budget import HALVED_AFTER, MOMENTUM, recipe

BUNDLE = head_bundle(512)
IMAGE = BUNDLE.image


def test_the_plan_takes_what_fits_and_says_what_it_gave_up():
    found = {}
    for budget in (60_000, 45_000, 24_000, 20_700, 12_000):
        plan = plan_head(IMAGE, budget, 10)
        assert plan.need == measure(IMAGE, plan.head) and plan.need.total <= budget
        found[budget] = plan.head.bytes_per_parameter, plan.head.batch, plan.gave_up
    assert found[60_000] == (8, 4, ())
    assert found[45_000][:2] == (8, 4) and "replay (" in found[45_000][2][0]
    assert found[24_000][:2] == (4, 4) and "momentum (" in found[24_000][2][0]
    assert found[12_000][0] == 2 and "weights of 32 bits (" in found[12_000][2][1]
    with pytest.raises(DeviceError, match="E_ARENA: needed .* given 9000, missing"):
        plan_head(IMAGE, 9_000, 10)


def test_the_learning_rate_falls_with_samples_whatever_the_batch():
    for head in (recipe(10, 4, batch) for batch in (1, 4)):
        assert head.learning_rate_decay * (HALVED_AFTER / head.batch) == pytest.approx(1)
    assert recipe(10, 8, 4).learning_rate == pytest.approx(recipe(10, 4, 4).learning_rate * (1 - MOMENTUM))
    known = plan_head(IMAGE, 100_000, 10, samples=203)
    assert known.head.replay and known.head.steps == 2 * 51 and known.head.learning_rate_decay == 0
    assert plan_head(IMAGE, 100_000, 10, samples=203, keep_samples=False).head == recipe(10, 8, 4, samples=203)
    plan = plan_head(IMAGE, 24_000, 10, learning_rate=2.0, keep_samples=False)
    assert plan.head == recipe(10, 4, 4, learning_rate=2.0)


@settings(max_examples=50, deadline=None)
@given(budget=st.integers(2_000, 60_000), classes=st.integers(2, 12))
def test_a_byte_more_never_makes_the_plan_worse_and_the_number_missing_is_exact(budget, classes):
    def rank(budget: int) -> tuple[int, int]:
        plan = plan_head(IMAGE, budget, classes)
        return plan.head.bytes_per_parameter, plan.head.batch

    try:
        least = rank(budget)
    except DeviceError as refused:
        assert refused.need.given == budget
        fitting = budget + refused.need.missing
        assert rank(fitting) == (2, 1)
        with pytest.raises(DeviceError, match="missing 1;"):
            plan_head(IMAGE, fitting - 1, classes)
    else:
        assert rank(budget + 1) >= least


def test_what_is_left_is_spent_on_replay():
    assert plan_head(IMAGE, 100_000, 10, keep_samples=False).head.replay == 0
    for options in ({}, {"new_classes": 3}):
        plan = plan_head(IMAGE, 100_000, 10, **options)
        assert plan.head.new_classes == options.get("new_classes", 0)
        assert plan.need.total <= 100_000 < plan.need.total + 514 + 8
        assert plan.head.replay == (plan.need.replay - 68) // 514
        HostDevice(BUNDLE, plan.need.total, head=plan.head)
    assert plan_head(IMAGE, 100_000, 10, new_classes=3, keep_samples=False).head.replay == 0
    tight = plan_head(IMAGE, 45_500, 10, new_classes=3)
    assert tight.head.replay == 0 and "short of one sample a class" in tight.gave_up[-1]
