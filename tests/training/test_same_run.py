"""What a run is made of is what it goes on with and what is looked at; nothing is lost without a word."""

import shutil

import numpy as np
import optax
import pytest
from PIL import Image

from hessabs import batch_size, data, training
from hessabs.training import Durability, OptimizerSettings, fit, make_optimizer
from hessabs.training.assemble import assemble
from hessabs.training.tasks.named import TaskSettings, make_named
from hessabs.training.trained import load_trained
from tests.training.runs import digits_task

pytestmark = pytest.mark.sampled
RESUME = Durability(resume=True, checkpoint_every="1epochs")


def adamw(lr=0.01):
    return make_optimizer(OptimizerSettings("adamw", lr=lr), batch_size=40)


def train(workdir, optimizer=None, rule=None, epochs=1, schedule=None):
    rule = rule or batch_size.constant(40)
    options = {"micro_batch_size": 40, "schedule": schedule, "workdir": workdir, "durability": RESUME}
    return fit(digits_task(), optimizer or adamw(), rule, epochs=epochs, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("same") / "run"
    train(workdir)
    return workdir


def linear(samples):
    return 1 - samples / 10_000


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer": adamw(0.1)}, "optimiser"),
        ({"optimizer": optax.sgd(0.01)}, "optimiser"),
        ({"rule": batch_size.fixed_growth(40, 80, grow_at=[100])}, "rule"),
        ({"rule": batch_size.with_decay(batch_size.constant(40), at=[100], factor=0.5)}, "rule"),
        ({"schedule": linear}, "schedule"),
    ],
)
def test_other_parts_are_refused_without_a_record_of_settings(trained, changes, named, epochs):
    with pytest.raises(ValueError, match=f"not the run that was saved: the {named} is another one"):
        train(trained, epochs=epochs, **changes)


def test_the_same_parts_go_on(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    assert [record["epoch"] for record in train(folder).records] == [1]
    assert [record["epoch"] for record in train(folder, epochs=2).records] == [1, 2]


@pytest.mark.slow
def test_a_finished_run_is_not_lost_without_a_word(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    before = sorted(path.name for path in folder.iterdir())
    options = {"epochs": 1, "micro_batch_size": 40, "workdir": folder}
    with pytest.raises(FileExistsError, match=r"already holds a run; .* .overwrite=True"):
        fit(digits_task(), adamw(), batch_size.constant(40), **options)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert fit(digits_task(), adamw(), batch_size.constant(40), **options, overwrite=True).records


def test_callbacks_cannot_change_a_run():
    class Keeps:
        def __call__(self, event, record):
            if event == "start":
                self.lines = record["records"]
                record["settings"]["epochs"] = 99
            elif event == "epoch":
                self.lines.append(record)
                record.clear()

    result = fit(
        digits_task(), adamw(), batch_size.constant(40), epochs=3, micro_batch_size=40, callbacks=[Keeps()]
    )
    assert [record["epoch"] for record in result.records] == [1, 2, 3]
    assert result.summary["epochs"] == 3


def draw_folder(root, classes):
    rng = np.random.default_rng(0)
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(10):
            pixels = (rng.integers(0, 100, (4, 4, 3)) + 120 * place).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


@pytest.mark.slow
def test_data_may_lie_elsewhere_now(tmp_path, monkeypatch):
    draw_folder(tmp_path / "before/images", ["cat", "dog"])
    run = tmp_path / "run"

    def train(dataset, epochs):
        settings = {"method": "bl", "batch_size": 8, "epochs": epochs, "lr_decay_epochs": ()}
        parts = assemble({"dataset": dataset, **settings})
        options = {**parts.options, "workdir": run, "durability": RESUME}
        return [str(record) for record in fit(parts.task, parts.optimizer, parts.rule, **options).records]

    monkeypatch.chdir(tmp_path / "before")
    first = train("folder:images", 1)
    monkeypatch.chdir(tmp_path)
    assert len(load_trained(run).task.train) == 16  # seen from another folder
    (tmp_path / "before").rename(tmp_path / "after")
    assert train("folder:after/images", 2)[:1] == first
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "after/images/cat/1.png")
    with pytest.raises(ValueError, match="not the run that was saved: of the data the"):
        train("folder:after/images", 3)


@pytest.mark.slow
def test_classes_and_images_that_are_others_now(tmp_path, capsys):
    draw_folder(tmp_path / "images", ["cat", "dog"])
    task = make_named(TaskSettings(dataset=f"folder:{tmp_path / 'images'}"))
    fit(task, adamw(), batch_size.constant(8), epochs=1, workdir=tmp_path / "run", durability=RESUME)
    load_trained(tmp_path / "run")
    assert "are not those" not in capsys.readouterr().err
    (tmp_path / "images/cat").rename(tmp_path / "images/zcat")
    with pytest.raises(ValueError, match=r"are others now, .*: gone are \['cat'\], new are \['zcat'\]"):
        load_trained(tmp_path / "run")
    again = make_named(TaskSettings(dataset=f"folder:{tmp_path / 'images'}"))
    with pytest.raises(ValueError, match=r"not the run that was saved: of the data the"):
        fit(again, adamw(), batch_size.constant(8), epochs=2, workdir=tmp_path / "run", durability=RESUME)
    (tmp_path / "images/zcat").rename(tmp_path / "images/cat")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "images/cat/1.png")
    load_trained(tmp_path / "run")
    assert "are not those that the run in" in capsys.readouterr().err


def test_images_are_compared_and_not_labels_alone():
    image, label = np.zeros((9, 4, 4, 1), np.uint8), np.zeros(9, np.int32)
    prints = {
        data.fingerprint(data.as_source({"image": images, "label": label})) for images in (image, image + 1)
    }
    assert len(prints) == 2


def test_settings_that_an_own_task_does_not_read(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("from tests.training.runs import digits_task\n\n\ndef task():\n    return digits_task()\n")
    named = f"{path}:task"
    for unread, value in (("model", "nonsense"), ("validation_examples", 10), ("augment", "crop_flip")):
        with pytest.raises(ValueError, match=f"`{unread}` is not read with `task`"):
            make_named(TaskSettings(task=named, **{unread: value}))
    with pytest.raises(ValueError, match="`model` is not read with `task`"):  # its default, but given
        assemble({"task": named, "model": TaskSettings().model})
    assert not {"dataset", "model", "augment"} & {*make_named(TaskSettings(task=named)).settings}


def test_a_metric_may_not_be_called_loss():
    task = digits_task()

    def loss(*arguments):
        out = task.loss(*arguments)
        return out._replace(metrics={"loss": 2 * out.mean})

    with pytest.raises(ValueError, match="may be called 'loss'"):
        fit(task._replace(loss=loss), adamw(), batch_size.constant(40), epochs=1)


def scaled(batch):
    return {**batch, "image": batch["image"] / np.float32(255)}


def test_augmentation_that_nothing_applies():
    task = digits_task()._replace(augmentation="crop_flip", prepare=scaled)
    with pytest.raises(ValueError, match="crop_flip of the task digits is drawn and not used"):
        training.run.prepare(task, adamw(), batch_size.constant(40))


@pytest.mark.slow
def test_data_named_now_with_the_classes_in_other_places(tmp_path, capsys):
    for name, classes in (("a", ["ant", "bee"]), ("b", ["bee", "cat"]), ("c", ["ape", "boa"])):
        draw_folder(tmp_path / name, classes)
    task = make_named(TaskSettings(dataset=f"folder:{tmp_path / 'a'}"))
    fit(task, adamw(), batch_size.constant(8), epochs=1, workdir=tmp_path / "run")
    with pytest.raises(ValueError, match=r"would be judged by wrong labels: bee of \['bee', 'cat'\]"):
        load_trained(tmp_path / "run", flags={"dataset": f"folder:{tmp_path / 'b'}"})
    load_trained(tmp_path / "run", flags={"dataset": f"folder:{tmp_path / 'c'}"})
    assert "are called ['ape', 'boa'], and those of the run ['ant', 'bee']" in capsys.readouterr().err
