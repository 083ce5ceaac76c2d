"""Acceleration at equal quality, on curves whose answers are known, and what must hold for any curve."""

import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from modelchain.acceleration import Acceleration, Reached, acceleration, compute_to_reach, envelope

ACCURACY = [(0.0, 0.1), (100.0, 0.5), (400.0, 0.7), (1600.0, 0.8)]

curves = st.lists(
    st.tuples(st.integers(0, 10**6).map(float), st.integers(-1000, 1000).map(lambda value: value / 1000)),
    min_size=1,
    max_size=12,
)
targets = st.integers(-1100, 1100).map(lambda value: value / 1000)


@pytest.mark.parametrize(
    ("target", "macs"),
    [
        (0.5, 100.0),  # exactly at an evaluation
        (0.6, 200.0),  # half way up, between 100 and 400: their geometric mean
        (0.75, 800.0),
        (0.8, 1600.0),  # at the end
        (0.3, 50.0),  # from zero compute, which has no logarithm: straight
        (0.05, 0.0),  # before the first step
    ],
)
def test_the_compute_is_interpolated_in_its_logarithm(target: float, macs: float) -> None:
    found = compute_to_reach(ACCURACY, target, higher_is_better=True)
    assert found.reached
    assert found.macs == pytest.approx(macs)


def test_a_target_that_is_not_reached_counts_all_that_was_spent() -> None:
    assert compute_to_reach(ACCURACY, 0.81, higher_is_better=True) == Reached(1600.0, reached=False)
    falling = [*ACCURACY, (3200.0, 0.6)]
    assert compute_to_reach(falling, 0.81, higher_is_better=True) == Reached(3200.0, reached=False)


def test_a_loss_reaches_its_target_from_above() -> None:
    loss = [(100.0, 2.0), (400.0, 1.0)]
    assert compute_to_reach(loss, 1.5, higher_is_better=False).macs == pytest.approx(200.0)
    assert compute_to_reach(loss, 0.9, higher_is_better=False) == Reached(400.0, reached=False)
    assert compute_to_reach(loss, 3.0, higher_is_better=False) == Reached(100.0, reached=True)


def test_the_best_so_far_counts_and_a_dip_does_not() -> None:
    dip = [(100.0, 0.5), (200.0, 0.3), (400.0, 0.7)]
    assert compute_to_reach(dip, 0.6, higher_is_better=True).macs == pytest.approx(200.0)
    assert compute_to_reach([*dip, (800.0, 0.6)], 0.7, higher_is_better=True).macs == 400.0


def test_evaluations_come_in_any_order_and_the_better_of_two_at_one_compute_counts() -> None:
    shuffled = [ACCURACY[2], ACCURACY[0], (100.0, 0.2), ACCURACY[3], ACCURACY[1]]
    assert compute_to_reach(shuffled, 0.6, higher_is_better=True).macs == pytest.approx(200.0)


def test_values_that_went_astray_are_passed_over() -> None:
    astray = [(100.0, 2.0), (200.0, math.nan), (300.0, -math.inf), (400.0, 1.0)]
    assert compute_to_reach(astray, 1.5, higher_is_better=False).macs == pytest.approx(200.0)
    lost = [(100.0, math.nan), (200.0, math.inf)]
    assert compute_to_reach(lost, 1.5, higher_is_better=False) == Reached(200.0, reached=False)


def test_what_can_be_reached_by_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="without an evaluation"):
        compute_to_reach([], 0.5, higher_is_better=True)
    with pytest.raises(ValueError, match="target of nan"):
        compute_to_reach(ACCURACY, math.nan, higher_is_better=True)
    with pytest.raises(ValueError, match="from 0 on"):
        compute_to_reach([(-1.0, 0.5)], 0.5, higher_is_better=True)
    with pytest.raises(ValueError, match="models trained alone"):
        acceleration([], 100.0)
    with pytest.raises(ValueError, match="a chain that took compute"):
        acceleration([Reached(1.0, reached=True)], 0.0)


def test_the_family_is_summed_and_one_model_that_was_not_reached_makes_a_lower_bound() -> None:
    reached, short = Reached(100.0, reached=True), Reached(490.0, reached=False)
    assert acceleration([reached, reached], 80.0) == Acceleration(2.5, at_least=False)
    assert str(acceleration([reached, reached], 80.0)) == "2.50x"
    assert acceleration([reached, short], 200.0) == Acceleration(2.95, at_least=True)
    assert str(acceleration([reached, short], 200.0)) == ">= 2.95x"


def test_a_run_decayed_to_less_is_better_for_less_compute() -> None:
    """The shorter run ends at 0.8, where the longer one still is at 0.6: alone needs no more than the shorter."""
    long, short = [(100.0, 0.5), (400.0, 0.6), (1600.0, 0.9)], [(100.0, 0.5), (400.0, 0.8)]
    both = envelope([long, short], higher_is_better=True)
    assert compute_to_reach(both, 0.8, higher_is_better=True).macs == pytest.approx(400.0)
    assert compute_to_reach(both, 0.85, higher_is_better=True).macs == pytest.approx(800.0)
    assert compute_to_reach(both, 0.95, higher_is_better=True) == Reached(1600.0, reached=False)


def test_an_envelope_keeps_what_a_run_reached_between_the_evaluations_of_another() -> None:
    good, poor = [(100.0, 0.5), (400.0, 0.9)], [(200.0, 0.3)]
    both = envelope([good, poor], higher_is_better=True)
    assert compute_to_reach(both, 0.6, higher_is_better=True).macs == pytest.approx(100 * 4**0.25)


@given(curves, targets, st.booleans())
def test_the_answer_lies_where_the_curve_passes_the_target(
    curve: list[tuple[float, float]], target: float, higher: bool
) -> None:
    found = compute_to_reach(curve, target, higher_is_better=higher)
    good_enough = [macs for macs, value in curve if (value >= target if higher else value <= target)]
    assert found.reached == bool(good_enough)
    if not good_enough:
        assert found.macs == max(macs for macs, _ in curve)
        return
    earlier = [macs for macs, _ in curve if macs < min(good_enough)]
    assert min(earlier, default=found.macs) * (1 - 1e-9) <= found.macs <= min(good_enough) * (1 + 1e-9)


@given(curves, st.tuples(targets, targets).map(sorted))
def test_a_higher_target_never_takes_less(curve: list[tuple[float, float]], ends: list[float]) -> None:
    low, high = (compute_to_reach(curve, target, higher_is_better=True) for target in ends)
    assert low.macs <= high.macs * (1 + 1e-9)
    assert low.reached or not high.reached


@given(curves, targets)
def test_lower_is_better_mirrors_higher_is_better(curve: list[tuple[float, float]], target: float) -> None:
    mirrored = [(macs, -value) for macs, value in curve]
    assert compute_to_reach(curve, target, higher_is_better=True) == compute_to_reach(
        mirrored, -target, higher_is_better=False
    )


@given(st.lists(curves, min_size=1, max_size=4), targets, st.booleans())
def test_no_run_is_faster_than_the_envelope_of_all(
    runs: list[list[tuple[float, float]]], target: float, higher: bool
) -> None:
    together = compute_to_reach(envelope(runs, higher_is_better=higher), target, higher_is_better=higher)
    each = [compute_to_reach(run, target, higher_is_better=higher) for run in runs]
    assert together.reached == any(one.reached for one in each)
    if together.reached:
        assert together.macs <= min(one.macs for one in each if one.reached) * (1 + 1e-9)
    else:
        assert together.macs == max(one.macs for one in each)


@example([(0.0, 0.0), (1.0, 0.0), (2.0, 0.003)], 0.002)
@given(curves, targets)
def test_the_envelope_of_one_run_is_that_run_or_favours_it(
    curve: list[tuple[float, float]], target: float
) -> None:
    alone = compute_to_reach(curve, target, higher_is_better=True)
    enveloped = compute_to_reach(envelope([curve], higher_is_better=True), target, higher_is_better=True)
    assume(alone.reached)
    # From compute 0 on a run is straight in compute, and the envelope only up to the run's next evaluation.
    from_zero = any(macs == 0 for macs, _ in curve)
    assert enveloped.macs <= alone.macs * (1 + 1e-6)
    assert from_zero or enveloped.macs == pytest.approx(alone.macs, rel=1e-6)
