"""Batches that come back."""

import pytest

from hessabs.batch_size import Observation, cyclical


def course(controller, until):
    state, seen = controller.init(), [(0, int(controller.init().batch_size))]
    while int(state.observe_at) <= until:
        samples = int(state.observe_at)
        state = controller.update(Observation(samples), state)
        seen.append((samples, int(state.batch_size)))
    return seen


def test_equal_parts_and_a_new_start():
    got = course(cyclical(32, 128, cycle=3000), 4000)
    assert got == [(0, 32), (1000, 64), (2000, 128), (3000, 32), (4000, 64)]


def test_a_triangle_goes_down_the_same_steps():
    got = course(cyclical(1, 4, cycle=100, shape="triangular"), 125)
    assert got == [(0, 1), (25, 2), (50, 4), (75, 2), (100, 1), (125, 2)]


def test_parts_that_do_not_divide_the_cycle_lose_no_example():
    got = course(cyclical(1, 4, cycle=10), 14)
    assert got == [(0, 1), (4, 2), (7, 4), (10, 1), (14, 2)]


def test_a_late_call_is_the_same_decision():
    controller = cyclical(32, 128, cycle=3000)
    assert int(controller.update(Observation(7500), controller.init()).batch_size) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cycle": 0}, "`cycle` must be at least 1"),
        ({"cycle": 2}, "`cycle` must have an example for each of its 3 parts, got 2"),
        ({"shape": "square"}, "`shape` must be one of"),
        ({"growth_factor": 1.0}, "`growth_factor` must be above 1"),
    ],
)
def test_bad_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        cyclical(**{"initial": 1, "maximum": 4, "cycle": 100, **options})
