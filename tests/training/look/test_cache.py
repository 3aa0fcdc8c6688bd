"""What goes on after a kill: found by what it depends on, whole or not at all, and never unpickled."""

import jax.numpy as jnp
import numpy as np
import pytest

from hessabs.training.look import cache

VALUES = {"stands": np.array([True, False]), "rows": [{"matrix": "a", "eigenvalue": 0.1}], "count": 3}


def test_arrays_and_json_come_back(tmp_path):
    identity = cache.identify(what="pgd", epsilon=0.1)
    cache.keep(tmp_path / "new", "training, last layer", identity, {**VALUES, "x": jnp.ones(2)})
    found = cache.find(tmp_path / "new", "training, last layer", identity)
    np.testing.assert_array_equal(found.pop("stands"), VALUES["stands"])
    np.testing.assert_array_equal(found.pop("x"), np.ones(2))
    assert found == {"rows": VALUES["rows"], "count": 3}
    (path,) = (tmp_path / "new").iterdir()  # nothing partial is left
    assert path.name == f"training_last_layer-{identity[:16]}.npz"


def test_something_else_is_not_found(tmp_path, capsys):
    identity = cache.identify(what="pgd", epsilon=0.1)
    cache.keep(tmp_path, "pgd", identity, VALUES)
    assert cache.find(tmp_path, "pgd", cache.identify(what="pgd", epsilon=0.2)) is None
    assert cache.find(tmp_path, "bim", identity) is None
    assert capsys.readouterr().err == ""
    assert cache.find(tmp_path, "pgd", identity[:16] + "0" * 48) is None  # the name of the file is but a part
    assert "is left aside: it belongs to something else" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x80\x04K\x01."),
        lambda path: np.savez(path, __identity__=np.array([object()])),
        lambda path: np.savez(path, other=np.ones(1)),
    ],
    ids=["end", "half", "empty", "pickle", "pickled array", "other archive"],
)
def test_damaged_files_count_for_nothing_and_are_named(tmp_path, capsys, damage):
    identity = cache.identify(what="pgd")
    cache.keep(tmp_path, "pgd", identity, VALUES)
    (path,) = tmp_path.iterdir()
    damage(path)
    assert cache.find(tmp_path, "pgd", identity) is None
    assert f"{path} is left aside: it cannot be read" in capsys.readouterr().err


def test_digests_tell_shapes_dtypes_values_and_versions_apart(monkeypatch):
    trees = [{"a": np.zeros(2)}, {"b": np.zeros(2)}, {"a": np.zeros((2, 1))}, {"a": np.zeros(4, np.float32)}]
    assert len({cache.digest(tree) for tree in [*trees, {"a": np.array([0.0, 1.0])}]}) == 5
    before = cache.identify(a=1)
    monkeypatch.setattr("hessabs.__version__", "another")
    assert cache.identify(a=1) != before != cache.identify(a=2)


def test_drop_removes_a_name_and_no_other(tmp_path):
    for name, number in (("krylov", 1), ("krylov", 2), ("krylov-2", 1)):
        cache.keep(tmp_path, name, cache.identify(number=number), VALUES)
    cache.drop(tmp_path, "krylov", but=cache.identify(number=2))
    assert len(list(tmp_path.iterdir())) == 2
    cache.drop(tmp_path, "krylov")
    assert [path.name[:9] for path in tmp_path.iterdir()] == ["krylov-2-"]
