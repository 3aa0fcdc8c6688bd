"""Files of the user through the command line: what they make is used, and what is wrong with it is said."""

import hashlib
import json
import pathlib
import shutil

import numpy as np
import pytest

from hessabs.cli.main import main
from hessabs.training import load_trained
from hessabs.training.files import CONFIG
from tests.training.runs import bits, lines

Image = pytest.importorskip("PIL.Image", reason="the extra `data` is not installed")
pytestmark = pytest.mark.sampled
CLASSES, NUMBER = ("bottom", "middle", "top"), 20  # of each class; every fifth is a test image

NETS = """\
import equinox as eqx
import flax.linen as nn
import jax
from flax import nnx

SIZE = 9


class Linen(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs)(nn.tanh(nn.Dense(6)(x.reshape(len(x), -1))))


class Nnx(nnx.Module):
    def __init__(self, outputs, rngs):
        self.dense = nnx.Linear(SIZE, outputs, rngs=rngs)

    def __call__(self, x):
        return self.dense(x.reshape(len(x), -1))


class Eqx(eqx.Module):
    dense: eqx.nn.Linear

    def __call__(self, x):
        return self.dense(x.reshape(-1))


def linen(num_classes):
    return Linen(num_classes)


def nnx_net(num_classes, rngs):
    return Nnx(num_classes, rngs)


def equinox(num_classes, key):
    return Eqx(eqx.nn.Linear(SIZE, num_classes, key=key))


def few(num_classes):
    return Linen(num_classes - 1)


def raises(num_classes):
    layers = []
    return layers[num_classes]


def nothing(num_classes):
    pass
"""

OTHERS = """\
import jax.numpy as jnp
import numpy as np
import optax
from hessabs.training import LossOutput, tasks


def adam(lr=0.02):
    return optax.chain(optax.clip_by_global_norm(5.0), optax.adam(lr))


def number():
    return 3


def changing():
    def update(updates, state, params=None):
        return updates, (state, state)

    return optax.GradientTransformation(lambda params: jnp.zeros(()), update)


def loss(params, model_state, batch, key, train):
    errors = batch["x"] @ params["w"] - batch["y"]
    total = jnp.sum(batch["weight"])
    return LossOutput(jnp.sum(batch["weight"] * errors**2) / total, total, model_state)


def careless(params, model_state, batch, key, train):
    errors = batch["x"] @ params["w"] - batch["y"]
    return LossOutput(jnp.mean(errors**2), jnp.sum(batch["weight"]), model_state)


def weightless(params, model_state, batch, key, train):
    return jnp.mean((batch["x"] @ params["w"] - batch["y"])**2)


def make(loss_fn=loss):
    x = np.random.default_rng(0).normal(size=(48, 4)).astype(np.float32)
    examples = {"x": x, "y": x @ np.arange(4, dtype=np.float32)}
    return tasks.plain({"w": jnp.zeros(4)}, loss_fn, examples, examples, name="line")


def make_careless():
    return make(careless)


def make_weightless():
    return make(weightless)


def make_labels():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10)(x.reshape(len(x), -1))

    examples = {"image": np.zeros((30, 2, 2, 1), np.uint8), "label": np.arange(30) % 13}
    return tasks.linen(Net(), (examples, examples))


def raising():
    def told(event, record):
        if event == "epoch":
            raise OSError("no room for a chart")

    return told
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The user's folder: files, and images of three classes, told apart by which row is bright."""
    home = tmp_path_factory.mktemp("home")
    (home / "nets.py").write_text(NETS)
    (home / "others.py").write_text(OTHERS)
    rng = np.random.default_rng(0)
    for row, name in enumerate(reversed(CLASSES)):
        (home / "images" / name).mkdir(parents=True)
        for number in range(NUMBER):
            pixels = rng.integers(0, 100, (3, 3)).astype(np.uint8)
            pixels[row] += 100
            Image.fromarray(pixels).save(home / "images" / name / f"{number:02d}.png")
    return home


def train(home, workdir, *more, model="linen"):
    what = () if model is None else (f"--model={home}/nets.py:{model}", f"--dataset=folder:{home}/images")
    settings = ["--method=fixed", "--grow_epochs=1", "--batch_size=8", "--max_batch_size=16", "--epochs=3"]
    settings += ["--lr_decay_epochs=", "--hessian_batch_size=16", "--hessian_iters=2"]
    return main(["train", f"--workdir={workdir}", *what, *settings, *more])


@pytest.fixture(scope="module")
def run(home, tmp_path_factory):
    """A finished run of files of the user's own."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    assert train(home, workdir, f"--optimizer={home}/others.py:adam", "--lr=0.05") == 0
    return workdir


def refused(capsys, *parts):
    out, err = capsys.readouterr()
    err = err.strip().splitlines()
    assert err[-1].startswith("hessabs: ")
    assert "Traceback" not in "".join(err)
    for part in parts:
        assert part in err[-1], err[-1]
    return out


@pytest.mark.slow
def test_a_run_that_a_callback_broke_off_goes_on_to_the_same_bits(home, run, tmp_path, capsys):
    flags = (f"--optimizer={home}/others.py:adam", "--lr=0.05", "--checkpoint_every=1000epochs")
    assert train(home, tmp_path / "run", *flags, f"--callbacks={home}/others.py:raising") == 2
    refused(capsys, "others.py:raising raised OSError at the event 'epoch': no room for a chart")
    [saved] = (tmp_path / "run" / "checkpoints").iterdir()
    assert saved.name == str(json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["samples"])
    assert train(home, tmp_path / "run", *flags, "--resume") == 0
    assert lines(tmp_path / "run") == lines(run)
    ours, theirs = (bits(load_trained(folder).params) for folder in (tmp_path / "run", run))
    assert ours == theirs


def look(home, workdir, capsys):
    """Every command that looks at a run finds what it is; the accuracy is that of the predictions."""
    assert main(["evaluate", f"--workdir={workdir}"]) == 0
    accuracy = float(capsys.readouterr().out.split("accuracy")[1].split("%")[0]) / 100
    assert accuracy > 0.6
    assert main(["spectrum", f"--workdir={workdir}", "--top=1", "--max_matvecs=20"]) == 0
    assert main(["attack", f"--workdir={workdir}", "--attack=fgsm", "--epsilon=0.2"]) == 0
    [record] = (json.loads(path.read_text()) for path in workdir.glob("attack-*.json"))
    rows = {row["attack"]: row["accuracy"] for row in record["rows"]}
    assert rows["fgsm"] <= rows["clean"] == pytest.approx(accuracy, abs=1e-4)
    tests = [f"{home}/images/{name}/{number:02d}.png" for name in CLASSES for number in range(0, NUMBER, 5)]
    output = workdir / "predictions.json"
    assert main(["predict", f"--workdir={workdir}", f"--output={output}", *tests]) == 0
    found = json.loads(output.read_text())["predictions"]
    right = [row["class"] == pathlib.Path(row["image"]).parent.name for row in found]
    assert np.mean(right) == pytest.approx(accuracy, abs=1e-4)


@pytest.mark.slow
def test_every_command_looks_at_a_network_of_a_file(home, run, capsys):
    capsys.readouterr()
    look(home, run, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["nnx_net", "equinox"])
@pytest.mark.parametrize("devices", [1, 4])
def test_a_network_of_each_library(home, tmp_path, capsys, model, devices):
    assert train(home, tmp_path, "--optimizer=adamw", "--lr=0.05", f"--devices={devices}", model=model) == 0
    capsys.readouterr()
    look(home, tmp_path, capsys)


@pytest.mark.parametrize("devices", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_task_of_a_file(home, tmp_path, capsys, devices):
    flags = (f"--task={home}/others.py:make", f"--devices={devices}", "--lr=0.01")
    assert train(home, tmp_path, *flags, model=None) == 0
    assert train(home, tmp_path, *flags, "--resume", model=None) == 0
    assert "has finished; nothing is left to do" in capsys.readouterr().err
    assert main(["evaluate", f"--workdir={tmp_path}"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert float(capsys.readouterr().out.split()[1]) == pytest.approx(summary["test_loss"], rel=1e-4)
    assert main(["spectrum", f"--workdir={tmp_path}", "--top=1"]) == 0
    assert main(["attack", f"--workdir={tmp_path}"]) == 2
    refused(capsys, "The task line cannot be attacked: its inputs are not continuous")
    assert main(["predict", f"--workdir={tmp_path}", f"{home}/images/top/00.png"]) == 2
    refused(capsys, "The task line predicts no classes")


BAD_FILES = [
    # (flag, file and function, what is said)
    ("model", "nets.py:linnen", ("nets.py has no function linnen", "the nearest", "'linen'")),
    ("model", "net.py:linen", ("net.py, which cannot be read: No such file", "'nets.py'")),
    (
        "model",
        "nets.py:raises",
        ("nets.py, line 50: raises(num_classes=3) raised IndexError", "expected a Linen"),
    ),
    ("model", "nets.py:nothing", ("nets.py, line 53: nothing(num_classes=3) returned None; expected a Linen",)),
    ("model", "nets.py:few", ("nets.py, line 44:", "too few outputs: its data has 3 classes", "shape (n, 2)")),
    ("optimizer", "others.py:number", ("others.py, line 11: number() returned a int; expected an optax",)),
    (
        "optimizer",
        "others.py:changing",
        ("others.py, line 15", "must have the structure of", "after an update"),
    ),
    ("task", "others.py:adam", ("others.py, line 7: adam() returned a GradientTransformation", "Task")),
    ("task", "others.py:make_careless", ("others.py:make_careless does not heed batch['weight']",)),
    ("task", "others.py:make_weightless", ("others.py:make_weightless must return LossOutput(mean, weight",)),
    ("task", "others.py:make_labels", ("others.py, line", "do not fit: its network has 10 outputs", "got 10")),
    ("callbacks", "others.py:number", ("others.py, line 11: number() returned a int; expected a function of",)),
]


@pytest.mark.parametrize(("flag", "spec", "parts"), BAD_FILES, ids=lambda x: x if isinstance(x, str) else "")
def test_what_a_file_made_wrong_is_said_before_anything_is_written(home, tmp_path, capsys, flag, spec, parts):
    model = None if flag == "task" else "linen"
    assert train(home, tmp_path / "run", f"--{flag}={home}/{spec}", model=model) == 2
    assert refused(capsys, *parts) == ""
    assert not (tmp_path / "run").exists()


def save(path, size=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size, size), np.uint8)).save(path)


def one_class(root):
    save(root / "only" / "0.png")


def of_two_sizes(root):
    for name in ("one", "two"):
        for number in range(3):
            save(root / name / f"{number}.png", size=4 if (name, number) == ("two", 2) else 3)


def damaged(root):
    of_two_sizes(root)
    save(root / "two" / "2.png")
    for number in range(2):
        (root / "one" / f"{number}.png").write_bytes(b"none")


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda root: root.mkdir(), ("at least two classes, got none",)),
        (one_class, ("at least two classes, got one, 'only'",)),
        (damaged, ("2 of 6 images in", "cannot be read", "one/0.png")),
        (of_two_sizes, ("1 of 6 in", "is not 3x3: two/2.png 4x4", "--resize N")),
    ],
)
def test_folders_that_are_no_data_set(tmp_path, capsys, make, parts):
    make(tmp_path / "images")
    flags = [f"--workdir={tmp_path / 'run'}", f"--dataset=folder:{tmp_path / 'images'}"]
    assert main(["train", *flags]) == 2
    refused(capsys, *parts)
    assert not (tmp_path / "run").exists()


def edited(run, tmp_path, **changes):
    """A workdir as somebody else may send it: that of a run, with another record of its factories."""
    workdir = tmp_path / "sent"
    workdir.mkdir()
    for path in run.iterdir():
        if path.name in ("summary.json", "params"):
            (workdir / path.name).symlink_to(path)
    record = json.loads((run / CONFIG).read_text())
    record["config"] |= changes
    (workdir / CONFIG).write_text(json.dumps(record))
    return workdir


def planted(path):
    """A file that leaves a trace when it runs, and what a workdir records of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"open({str(path.parent / 'trace')!r}, 'w').close()\n" + NETS)
    return {"path": str(path), "name": "linen", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", ["inside", "dots", "link", "link to a folder", "task", "hash", "no record", "none"]
)
@pytest.mark.parametrize("command", ["evaluate", "attack --source"])
def test_a_workdir_that_came_from_elsewhere_runs_no_code(run, tmp_path, capsys, way, command):
    inside = tmp_path / "sent" / "deep" / "planted.py"
    record, name = {"path": str(inside), "name": "linen"}, "task" if way == "task" else "model"
    away = tmp_path / "away"
    away.mkdir()
    if way == "dots":
        record["path"] = str(away / ".." / "sent" / "deep" / "planted.py")
    elif way == "link":
        record["path"] = str(away / "link.py")
        (away / "link.py").symlink_to(inside)
    elif way == "link to a folder":
        record["path"] = str(away / "link" / "planted.py")
        (away / "link").symlink_to(inside.parent)
    elif way == "hash":  # outside, but not what it was
        inside = away / "planted.py"
        record["path"] = str(inside)
    content = {"no record": {}, "none": None}.get(way, {name: record})
    workdir = edited(run, tmp_path, **{name: f"{record['path']}:linen", "factories": content})
    record["sha256"] = planted(inside)["sha256"]
    if way == "hash":
        record["sha256"] = "0" * 64
    (workdir / CONFIG).write_text(
        (workdir / CONFIG).read_text().replace('"name": "linen"}', json.dumps(record)[1:])
    )
    flags = [f"--workdir={workdir}"]
    if command != "evaluate":
        flags = [f"--workdir={run}", f"--source={workdir}", "--attack=fgsm", "--epsilon=0.2"]
    assert main([command.split()[0], *flags]) == 2
    said = {"hash": "has changed since the run was made", "no record": "is damaged", "none": "--task="}
    refused(capsys, said.get(way, "a file in the workdir, which is data and runs no code by itself"))
    assert not (inside.parent / "trace").exists()


@pytest.mark.slow
def test_a_file_that_has_changed_since_is_said_and_used_where_it_is_named(home, run, tmp_path, capsys):
    record = json.loads((run / CONFIG).read_text())["config"]
    spec = f"{home / 'mine.py'}:linen"
    origin = {"path": str(home / "mine.py"), "name": "linen", "sha256": record["factories"]["model"]["sha256"]}
    workdir = edited(run, tmp_path, model=spec, factories={"model": origin})
    (home / "mine.py").write_text(NETS + "\nMORE = 1\n")
    capsys.readouterr()
    assert main(["evaluate", f"--workdir={workdir}"]) == 2
    refused(capsys, f"mine.py has changed since the run was made with it as `--model`: give --model={spec}")
    assert main(["evaluate", f"--workdir={workdir}", f"--model={spec}"]) == 0
    assert "mine.py has changed since the run was made with it as `--model`." in capsys.readouterr().err
    wider = NETS.replace("nn.Dense(6)", "nn.Dense(7)")
    (home / "mine.py").write_text(wider)
    assert main(["evaluate", f"--workdir={workdir}", f"--model={spec}"]) == 2
    refused(capsys, "holds another network than the task says")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nets.py", "nets.py has changed since the run was made with it"),
        ("others.py", "others.py:adam (SHA-256"),
    ],
)
def test_a_run_does_not_go_on_with_a_file_that_has_changed(home, run, tmp_path, capsys, name, said):
    shutil.copytree(run, tmp_path / "run")
    text = (home / name).read_text()
    capsys.readouterr()
    try:
        (home / name).write_text(text + "\nMORE = 1\n")
        flags = (f"--optimizer={home}/others.py:adam", "--lr=0.05", "--resume", "--epochs=4")
        assert train(home, tmp_path / "run", *flags) == 2
    finally:
        (home / name).write_text(text)
    refused(capsys, "This is not the run that was saved", said)
