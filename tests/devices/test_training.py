"""Training on several devices gives what it gives on one, and sends the gradient once an update."""

import pytest

from tests.devices.test_devices import TOLERANCE, findings, here


@pytest.mark.parametrize("kind", ["fixed", "auto"])
@pytest.mark.slow
def test_a_run(kind):
    found = findings("training", "runs")["runs"]
    assert found["grown to"] == 256
    assert found[kind]["params"] <= TOLERANCE
    assert found[kind]["numbers"] <= TOLERANCE
    assert found[kind]["decisions"]
    assert found[kind]["same bits"]
    # fixed: 1, 2, 4 or 8 micro-batches at once; auto: 16 as well; with adversarial examples and without
    sizes = 4 if kind == "fixed" else 5
    for name, count in found[kind]["compilations"].items():
        assert count <= {"add": 2 * sizes, "whole": 2}.get(name, 1)


def test_one_all_reduce_an_update_and_none_a_micro_batch():
    found = here("training", "travels")["travels"]
    for name in ("begin", "add", "add several", "add adversarial"):
        assert found[name] == []
    for name in ("finish", "whole"):
        [(kind, elements)] = found[name]
        assert kind == "all-reduce"
        assert found["params"] <= elements <= found["params"] + 10  # the gradient, and a few numbers


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sharded", pytest.param("sharded run", marks=pytest.mark.slow)])
def test_params_split_over_devices(name):
    found = (here if name == "sharded" else findings)("training", name)[name]
    # Matrices are halved, and so is what the optimiser keeps of them; biases are not.
    assert {"params", "average"} <= set(found["parts"])
    for part in found["parts"].values():
        assert 0.5 < part < 0.52
    assert found["moved"] > 1e-3
    # In many steps Adam divides by roots of squares that are nearly 0.
    tolerance = TOLERANCE * (1 if name == "sharded" else 5)
    assert found["params"] <= tolerance
    assert found["average"] <= tolerance
    if name == "sharded":
        assert "opt_state" in found["parts"]
        return
    assert 0.5 <= found["vectors"] < 0.52
    several, one = found["eigenvalue"]
    assert several == pytest.approx(one, rel=1e-4)
    assert found["decisions"]
    assert found["grown to"] > 16
    for several, one in (found["measured"], found["spectrum"]):
        assert several == pytest.approx(one, rel=1e-4)
        assert all(value > 0 for value in one)
    assert found["converged"]


@pytest.mark.slow
def test_rules_that_compare_micro_batches():
    found = findings("training", "rules and replays")
    for name in ("gns", "norm_test"):
        several, one = found["rules and replays"][name]["decisions"]
        assert several == one
        assert len({decided[3] for decided in one}) > 1  # it grows
        assert found["rules and replays"][name]["params"] <= TOLERANCE


@pytest.mark.slow
def test_replayed_perturbations_stay_with_their_images():
    found = findings("training", "rules and replays")["rules and replays"]["free"]
    assert found["decisions"][0] == found["decisions"][1]
    assert found["params"] <= TOLERANCE


@pytest.mark.parametrize("network", ["batch norm and dropout", pytest.param("resnet", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_batch_norm_and_dropout_see_whole_micro_batches(network):
    # Its layers amplify the rounding of float32: they are compared in float64.
    deep = network == "resnet"
    found = (findings("training", network, double=True) if deep else here("training", network))[network]
    assert found["moved"] > 1e-3
    assert found["params"] <= (1e-12 if deep else TOLERANCE)
    assert found["loss"] <= TOLERANCE
    assert found["one state"]  # all devices go on with the same statistics
    assert deep or found["statistics"] < 1  # a mean of averages: another one than that of one device
    assert found["add"] == []
    assert set(found["compilations"].values()) <= {0, 1, 2}
