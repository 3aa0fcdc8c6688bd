"""Several processes agree when to save, without asking each other at every step."""

import signal

import numpy as np
import pytest

from hessabs.training import processes
from hessabs.training.processes import Poll, next_number


@pytest.fixture
def others(monkeypatch):
    """Answers of the other processes; a list of questions asked."""
    asked, state = [], {"now": 0.0, "others": [[0, 0, 0.0]]}
    monkeypatch.setattr(processes.time, "perf_counter", lambda: state["now"])

    def gather(numbers):
        asked.append(list(numbers))
        return np.array([numbers, *state["others"]], np.float32)

    monkeypatch.setattr(processes, "gather", gather)
    return asked, state


def test_asks_about_once_a_second(others):
    asked, state = others
    ask = Poll()
    for _ in range(1000):
        state["now"] += 0.01
        assert ask.ask(True, None) in ((True, None), (False, None))
    assert 10 <= len(asked) <= 18  # ten seconds, and the first ones
    state["now"] += 60
    ask.ask(False, None)


def test_the_slowest_process_counts(others):
    asked, state = others
    state["others"] = [[0, 0, 10.0]]
    ask = Poll()
    for _ in range(5):
        ask.ask(False, None)
    assert len(asked) == 5


@pytest.mark.parametrize("late", [True, False])
def test_the_clock_of_the_first_counts_and_any_signal(others, late):
    _, state = others
    state["others"] = [[not late, signal.SIGTERM, 0.0]]
    assert Poll().ask(late, None) == (late, signal.SIGTERM)


def test_next_number_grows_at_most_twofold():
    assert next_number(1, 0.0) == 2
    assert next_number(4, 2.0) == 2


def test_one_process_shares_with_itself():
    tree = {"a": np.array([-0.0, np.nan], np.float32)}
    assert processes.tree_of_first(tree) is tree
    with pytest.raises(KeyError):
        processes.on_first(lambda: {}["missing"])
