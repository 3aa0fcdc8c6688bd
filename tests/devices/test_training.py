"""Training on eight devices gives what it gives on one, and sends the gradient once an update."""

import pytest

from tests.devices.test_devices import TOLERANCE, findings


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
    found = findings("training", "travels", "batch norm")["travels"]
    assert found["accumulate"] == found["accumulate_adversarial"] == []
    for name in ("apply_update", "update", "update_adversarial"):
        [(kind, elements)] = found[name]
        assert kind == "all-reduce"
        assert found["params"] <= elements <= found["params"] + 10  # the gradient, and a few numbers


@pytest.mark.parametrize("network", ["batch norm", pytest.param("resnet20", marks=pytest.mark.slow)])
def test_batch_norm_sees_whole_micro_batches(network):
    # Twenty layers amplify the rounding of float32: they are compared in float64.
    deep = network == "resnet20"
    found = findings("training", *((network,) if deep else ("travels", "batch norm")), double=deep)[network]
    assert found["moved"] > 1e-3
    assert found["params"] <= (1e-12 if deep else TOLERANCE)
    assert found["loss"] <= TOLERANCE
    assert found["one row"]  # all devices go on with the same statistics
    assert deep or found["statistics"] < 1  # a mean of averages: another one than that of one device
    assert found["accumulate"] == []
    assert set(found["compilations"].values()) <= {0, 1, 2}
