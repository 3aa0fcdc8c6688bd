"""Training on eight devices gives what it gives on one, and sends the gradient once an update."""

import pytest

from tests.devices.test_devices import TOLERANCE, findings

FAST = ("travels", "batch norm", "dropout")


@pytest.mark.parametrize("kind", ["fixed", "auto"])
@pytest.mark.slow
def test_a_run(kind):
    found = findings("training", "runs")["runs"]
    assert found["grown to"] == 256
    assert found[kind]["params"] <= TOLERANCE
    assert found[kind]["numbers"] <= TOLERANCE
    assert found[kind]["decisions"]
    assert found[kind]["same bits"]
    # fixed: 1, 2, 4 or 8 micro-batches at once; auto: 16 as well
    for name, count in found[kind]["compilations"].items():
        assert count <= (1 if "update" in name else 4 if kind == "fixed" else 5)


def test_one_all_reduce_an_update_and_none_a_micro_batch():
    found = findings("training", *FAST)["travels"]
    assert found["accumulate"] == found["accumulate_adversarial"] == []
    for name in ("apply_update", "update", "update_adversarial"):
        [(kind, elements)] = found[name]
        assert kind == "all-reduce"
        assert found["params"] <= elements <= found["params"] + 10  # the gradient, and a few numbers


def test_dropout_is_that_of_one_device():
    found = findings("training", *FAST)["dropout"]
    assert found["moved"] > 1e-3
    assert found["params"] <= TOLERANCE
    assert found["statistics"] == 0  # the keys
    assert found["one row"]
    assert found["accumulate"] == []


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


@pytest.mark.parametrize("network", ["batch norm", pytest.param("resnet20", marks=pytest.mark.slow)])
def test_batch_norm_sees_whole_micro_batches(network):
    # Twenty layers amplify the rounding of float32: they are compared in float64.
    deep = network == "resnet20"
    found = findings("training", *((network,) if deep else FAST), double=deep)[network]
    assert found["moved"] > 1e-3
    assert found["params"] <= (1e-12 if deep else TOLERANCE)
    assert found["loss"] <= TOLERANCE
    assert found["one row"]  # all devices go on with the same statistics
    assert deep or found["statistics"] < 1  # a mean of averages: another one than that of one device
    assert found["accumulate"] == []
    assert set(found["compilations"].values()) <= {0, 1, 2}
