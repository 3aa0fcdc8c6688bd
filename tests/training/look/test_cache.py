"""What goes on after a kill: found by what it depends on, whole or not at all, and never unpickled."""

import jax.numpy as jnp
import numpy as np
import pytest

from hessabs.training.look import cache

VALUES = {"stands": np.array([True, False]), "rows": [{"matrix": "a", "eigenvalue": 0.1}], "count": 3}


def test_arrays_and_json_come_back(tmp_path):
    identity = cache.identify(what="pgd", epsilon=0.1)
    kept = cache.Kept(tmp_path / "new", identity)
    made = kept.once("training, last layer", lambda: {**VALUES, "x": jnp.ones(2)})
    found = kept.once("training, last layer", lambda: 1 / 0)
    assert found.keys() == made.keys()
    np.testing.assert_array_equal(found.pop("stands"), VALUES["stands"])
    np.testing.assert_array_equal(found.pop("x"), np.ones(2))
    assert found == {"rows": VALUES["rows"], "count": 3}
    (path,) = (tmp_path / "new").iterdir()  # nothing partial is left
    assert path.name == f"training_last_layer-{identity[:16]}.npz"


def test_something_else_is_not_found(tmp_path, capsys):
    identity = cache.identify(what="pgd", epsilon=0.1)
    kept = cache.Kept(tmp_path, identity)
    kept.keep("pgd", VALUES)
    assert kept._replace(identity=cache.identify(what="pgd", epsilon=0.2)).find("pgd") is None
    assert kept.find("bim") is None
    assert capsys.readouterr().err == ""
    assert (
        kept._replace(identity=identity[:16] + "0" * 48).find("pgd") is None
    )  # the name of the file is but a part
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
    kept = cache.Kept(tmp_path, cache.identify(what="pgd"))
    kept.keep("pgd", VALUES)
    (path,) = tmp_path.iterdir()
    damage(path)
    assert kept.find("pgd") is None
    assert f"{path} is left aside: it cannot be read" in capsys.readouterr().err


def test_digests_tell_shapes_dtypes_values_and_versions_apart(monkeypatch):
    trees = [{"a": np.zeros(2)}, {"b": np.zeros(2)}, {"a": np.zeros((2, 1))}, {"a": np.zeros(4, np.float32)}]
    assert len({cache.digest(tree) for tree in [*trees, {"a": np.array([0.0, 1.0])}]}) == 5
    before = cache.identify(a=1)
    monkeypatch.setattr("hessabs.__version__", "another")
    assert cache.identify(a=1) != before != cache.identify(a=2)


def test_drop_removes_a_name_and_no_other(tmp_path):
    first, second = (cache.Kept(tmp_path, cache.identify(number=number)) for number in (1, 2))
    for kept, name in ((first, "krylov"), (second, "krylov"), (first, "krylov-2")):
        kept.keep(name, VALUES)
    second.drop("krylov", others=True)
    assert second.find("krylov") is not None
    assert len(list(tmp_path.iterdir())) == 2
    first.drop("krylov")
    assert [path.name[:9] for path in tmp_path.iterdir()] == ["krylov-2-"]
