"""The attack command on trained networks: files, numbers, what a kill leaves, and complaints."""

import csv
import json

import jax
import numpy as np
import pytest

from hessabs import attacks, cli
from hessabs.attacks import outcomes
from hessabs.data import subset
from hessabs.data.order import sample_places
from hessabs.training import tasks
from hessabs.training.files import CACHE
from hessabs.training.look import pictures
from hessabs.training.look.attack import MENU, Options, attack, make, stem
from tests.training.look import kinds

pytestmark = pytest.mark.sampled
SMALL = Options(("fgsm", "pgd"), (0.03, 0.1), steps=5, num_examples=80, batch_size=40)


@pytest.fixture
def no_pictures(monkeypatch):
    for name in ("save", "draw_sheet"):
        monkeypatch.setattr(pictures, name, lambda *args: None)


def layers(run, x):
    """The layers of ``kinds.Small``: the hidden one, the logits, and the kernels, in float64."""
    to_host = lambda x: np.asarray(x, np.float64)  # noqa: E731
    first, last = (jax.tree.map(to_host, run.params[name]) for name in ("Dense_1", "Dense_0"))
    hidden = np.tanh(x @ first["kernel"] + first["bias"])
    return hidden, hidden @ last["kernel"] + last["bias"], first["kernel"], last["kernel"]


def stand(run, maker, epsilons):
    """Which of 80 drawn test images are classified rightly after FGSM on another network, by epsilon."""
    examples = run.task.test.take(sample_places(80, len(run.task.test)))
    x, labels = examples["image"].reshape(80, -1) / 255.0, examples["label"]
    hidden, logits, first, last = layers(maker, x)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gradient = ((probabilities - np.eye(10)[labels]) @ last.T * (1 - hidden**2)) @ first.T
    moved = [np.clip(x + epsilon * np.sign(gradient), 0, 1) for epsilon in (0, *epsilons)]
    right, *after = (layers(run, each)[1].argmax(1) == labels for each in moved)
    return [right & each for each in after]


def withstood(run, maker, epsilon):
    return float(stand(run, maker, [epsilon])[0].mean())


def files(workdir):
    return {path.name: path.stat().st_mtime_ns for path in (workdir / CACHE).glob("*.npz")}


@pytest.mark.slow
def test_numbers_files_and_transfer(tmp_path):
    run, other = kinds.images(), kinds.images(1)
    transfer = SMALL._replace(source="other", attack=("fgsm",))
    attack(*run[:3], tmp_path, SMALL)
    attack(*run[:3], tmp_path, transfer, other[:3])
    for options, maker in ((SMALL, run), (transfer, other)):  # a later table has left the earlier one alone
        name = stem(options)
        record = json.loads((tmp_path / f"{name}.json").read_text())
        names = ["fgsm", "pgd", "worst case"] if options is SMALL else ["fgsm"]
        assert [row["attack"] for row in record["rows"]] == ["clean", *names * 2]
        assert record["images"] == 80
        for row in record["rows"]:
            if row["attack"] == "fgsm":
                assert row["accuracy"] == pytest.approx(withstood(run, maker, row["epsilon"]), abs=1e-6)
                assert 0 < row["mean_relative"] <= row["max_relative"]
                assert row["seconds_per_image"] > 0
        with (tmp_path / f"{name}.csv").open() as file:
            assert len(list(csv.DictReader(file))) == len(record["rows"])
        for picture in (f"{name}.png", f"{name}_sheet.png"):
            assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("keep_fallen", [True, False])
def test_what_fell_at_a_smaller_epsilon_stays_fallen_unless_told_otherwise(
    no_pictures, tmp_path, monkeypatch, keep_fallen
):
    def weak(epsilon, **options):  # moves nothing at the largest
        return attacks.fgsm(0.0 if epsilon == 0.9 else epsilon, **options)

    monkeypatch.setitem(MENU, "fgsm", MENU["fgsm"]._replace(factory=weak))
    run = kinds.images()
    options = SMALL._replace(attack=("fgsm",), epsilon=(0.9, 0.1, 0.05), keep_fallen=keep_fallen)
    got = attack(*run[:3], tmp_path, options)
    largest, middle, smallest = stand(run, run, (0.0, 0.1, 0.05))
    assert largest.sum() > smallest.sum() > middle.sum()
    want = [middle & smallest, middle & smallest, smallest] if keep_fallen else [largest, middle, smallest]
    assert [row["accuracy"] for row in got["rows"][1:]] == [each.mean() for each in want]
    assert got["warnings"] == []


@pytest.mark.slow
def test_an_interruption_loses_no_finished_chunk(no_pictures, tmp_path, monkeypatch):
    run, options = kinds.images(), Options(("fgsm",), (0.05, 0.1), num_examples=80, batch_size=20)
    attack_batch, calls = outcomes.run, []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return attack_batch(*args, **kwargs)

    monkeypatch.setattr(outcomes, "run", dying)
    with pytest.raises(KeyboardInterrupt):
        attack(*run[:3], tmp_path, options)
    kept = files(tmp_path)
    assert len(kept) == 4 + 5  # clean, the first epsilon, and the first chunk of the second one
    resumed = attack(*run[:3], tmp_path, options)
    assert len(calls) == 6 + 3
    assert kept.items() <= files(tmp_path).items()
    monkeypatch.setattr(outcomes, "run", lambda *args, **kwargs: 1 / 0)
    assert attack(*run[:3], tmp_path, options)["rows"] == resumed["rows"]
    assert [row["accuracy"] for row in resumed["rows"][1:]] == [withstood(run, run, e) for e in (0.05, 0.1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fgsm", "deepfool"])
def test_progress_counts_what_takes_time(no_pictures, tmp_path, monkeypatch, name):
    """What is kept already, and a second epsilon of an attack that knows none, take no time."""
    run, options = kinds.images(), Options((name,), (0.05, 0.1), num_examples=40, batch_size=20)
    bars = []

    class Bar:
        def __init__(self, total, done=0):
            self.seen = [(total, done)]
            bars.append(self.seen)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def show(self, samples, **values):
            self.seen.append(samples)

    monkeypatch.setattr("hessabs.training.look.attack.Progress", Bar)
    attack(*run[:3], tmp_path, options)
    for path in (tmp_path / "cache").glob(f"{name}*-20-*.npz"):
        path.unlink()
    attack(*run[:3], tmp_path, options)
    wanted = {
        "fgsm": [[(80, 0), 20, 40, 60, 80], [(80, 40), 40, 60, 60, 80]],
        "deepfool": [[(40, 0), 20, 40, 40, 40], [(40, 20), 20, 40, 40, 40]],
    }
    assert bars == wanted[name]


def test_another_network_or_other_options_find_nothing(no_pictures, tmp_path):
    options = Options(("fgsm",), (0.1,), num_examples=20)
    attack(*kinds.images()[:3], tmp_path, options)
    first = set(files(tmp_path))
    attack(*kinds.images()[:3], tmp_path, options._replace(norm="l2"))
    assert len(files(tmp_path)) == 2 * len(first) == 4
    (tmp_path / "other").mkdir()
    want = attack(*kinds.images(1)[:3], tmp_path / "other", options)["rows"]
    got = attack(*kinds.images(1)[:3], tmp_path, options)["rows"]
    assert [row["accuracy"] for row in got] == [row["accuracy"] for row in want]
    assert len(files(tmp_path)) == 6
    task, params, model_state, _ = kinds.images()
    attack(task._replace(settings={"model": "another"}), params, model_state, tmp_path, options)
    assert len(files(tmp_path)) == 8


@pytest.mark.slow
def test_the_time_of_a_first_run_alone_is_marked(no_pictures, tmp_path, monkeypatch, capsys):
    run, attack_batch = kinds.images(), outcomes.run
    seen = []

    def timed(*args, **kwargs):
        outcome, attacked = attack_batch(*args, **kwargs)
        seen.append(1)
        first_run = len(seen) == 1
        return outcome._replace(seconds=4.0 if first_run else 1.0, first_run=first_run), attacked

    monkeypatch.setattr(outcomes, "run", timed)
    monkeypatch.setattr("hessabs.training.look.where.open_run", lambda where: run)
    command = ["attack", f"--workdir={tmp_path}", "--attack=fgsm", "--num_examples=40"]
    for size, want in ((40, ["<100", "25"]), (20, ["50", "50"])):
        seen.clear()
        assert cli.main([*command, "--epsilon=0.11,0.12", f"--batch_size={size}"]) == 0
        lines = capsys.readouterr().out.splitlines()[2:4]
        assert [line.split()[5] for line in lines] == want


@pytest.mark.slow
def test_compilation_is_no_time_of_an_image(tmp_path):
    # Two epsilons of one attack do the same work; the first one alone compiles.
    jax.clear_caches()
    options = Options(("bim",), (0.11, 0.12), steps=7, num_examples=50, batch_size=50)
    first, second = attack(*kinds.images()[:3], tmp_path, options)["rows"][1:]
    assert first["seconds_compile"] > 0.2
    assert second["seconds_compile"] < first["seconds_compile"] / 4
    # 50 images: what it compiled for, counted as theirs, would be most of their time.
    assert 50 * first["seconds_per_image"] < first["seconds_compile"]


@pytest.mark.slow
def test_inputs_of_another_name_shape_and_range(no_pictures, tmp_path):
    # One coordinate decides, and the bounds keep it from falling: both are those of the task.
    import flax.linen as nn

    class Line(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x)

    x = np.array([[2.5, 0.0], [2.9, 0.0], [1.0, 0.0], [-3.0, 0.0]], np.float32)
    examples = {"point": x, "kind": np.array([1, 1, 1, 0], np.int32)}

    def loss(outputs, batch):
        return tasks.classification(outputs, {**batch, "label": batch["kind"]})

    fields = {"bounds": (-3.0, 3.0), "label_key": "kind", "num_classes": 2}
    task = tasks.linen(Line(), (examples, examples), inputs="point", loss=loss, **fields)
    kernel = np.array([[-1.0, 1.0], [0.0, 0.0]], np.float32)
    params = {"Dense_0": {"kernel": kernel, "bias": np.zeros(2, np.float32)}}
    record = attack(task, params, {}, tmp_path, Options(("fgsm",), (2.6, 4.0)))
    assert [row["accuracy"] for row in record["rows"]] == [1.0, 0.5, 0.0]
    assert not list(tmp_path.glob("*_sheet.png"))  # points are no images


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (-1.0, np.inf), (-1.0, 2.0)])
def test_a_sheet_is_shaded_between_finite_bounds(tmp_path, monkeypatch, bounds):
    sheets = []
    monkeypatch.setattr(pictures, "save", lambda *args: None)
    monkeypatch.setattr(pictures, "draw_sheet", lambda path, sheet: sheets.append(sheet))
    task, params, model_state, _ = kinds.images()
    options = Options(("fgsm",), (0.1,), num_examples=20)
    attack(task._replace(bounds=bounds), params, model_state, tmp_path, options)
    [sheet] = sheets
    pixels = np.concatenate([sheet.clean, sheet.attacked])
    extremes = (pixels.min(), pixels.max())
    assert sheet.shades == tuple(np.where(np.isfinite(bounds), bounds, extremes))
    np.testing.assert_allclose(np.abs(sheet.attacked - sheet.clean).max(), 0.1, rtol=1e-5)


def test_zero_gradients_are_said_in_one_line(no_pictures, tmp_path, monkeypatch, capsys):
    task, params, model_state, record = kinds.images()
    flat = task._replace(logits=lambda *args: jax.lax.stop_gradient(task.logits(*args)))
    run = (flat, params, model_state, record)
    monkeypatch.setattr("hessabs.training.look.where.open_run", lambda where: run)
    flags = ["--attack=fgsm", "--epsilon=8/255", "--num_examples=20"]
    assert cli.main(["attack", f"--workdir={tmp_path}", *flags]) == 0
    out, error = capsys.readouterr()
    assert "rightly classified examples is zero" in error
    assert error.count("warning: ") == 1
    assert out.splitlines()[2].split()[:2] == ["fgsm", "0.03137"]


@pytest.mark.parametrize("name", MENU)
def test_every_attack_is_made_with_the_bounds_and_the_key_of_the_task(monkeypatch, name):
    entry, options, got = MENU[name], Options(norm=MENU[name].norms[0], steps=3), {}

    def factory(*args, **kwargs):
        got.update(kwargs)
        return entry.factory(*args, **kwargs)

    monkeypatch.setitem(MENU, name, entry._replace(factory=factory))
    assert callable(make(name, 0.1, options, bounds=(-1.0, 1.0), inputs_key="x"))
    assert got.keys() >= {"bounds", "inputs_key", *entry.reads}


def test_steps_are_each_attacks_own_unless_they_are_given():
    run = kinds.images()
    for steps in (None, 7):
        for name in ("carlini_wagner", "bim"):
            seen = {}
            entry = MENU[name]._replace(factory=lambda *args, seen=seen, **named: seen.update(named))
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(MENU, name, entry)
                make(name, 0.1, Options(norm=entry.norms[0], steps=steps), bounds=run.task.bounds)
            assert seen.get("steps") == steps  # 1,000 of Carlini and Wagner are not 40 of PGD


@pytest.mark.slow
def test_tokens_and_plain_tasks_are_refused(tmp_path):
    for kind in (kinds.tokens, kinds.plain):
        with pytest.raises(ValueError, match="cannot be attacked: its inputs are not continuous"):
            attack(*kind()[:3], tmp_path, Options(attack=("fgsm",)))
    other = kinds.images()
    examples = {"image": np.ones((4, 3, 3, 1), np.float32), "label": np.zeros(4, np.int32)}
    run = tasks.linen(kinds.Small(), (examples, examples))
    with pytest.raises(
        ValueError, match=r"`source` must be a run on inputs .*\(8, 8, 1, 10\), and \(3, 3, 1, 10\)"
    ):
        attack(run, *run.init(jax.random.key(0)), tmp_path, SMALL, other[:3])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--attack=fgsm", "--steps=9"], "`steps` is read with attack=bim, pgd, mi_fgsm"),
        (["--queries=1000"], "`queries` is read with attack=square, ensemble, and not with attack=pgd"),
        (["--attack=pdg"], "`attack` must name some of fgsm, l2grad, bim"),
        (["--attack=l2grad"], "`attack` l2grad has the norms l2, got norm='linf'"),
        (["--norm=l3"], "--norm=l3: it must be one of linf, l2, l1, got 'l3'"),
        (["--epsilon=-1"], "`epsilon` must be at least 0 and finite, got -1.0"),
        (["--epsilon=a"], "--epsilon=a: numbers or fractions such as 8/255 separated by commas must be given"),
        (["--attack="], "Name each attack and each epsilon once"),
        (["--epsilon=0.1,0.1"], "Name each attack and each epsilon once"),
        (["--steps=0"], "`steps` must be at least 1, got 0"),
        (["--restarts=0"], "`restarts` must be at least 1, got 0"),
        (["--batch_size=0"], "`batch_size` must be at least 1, got 0"),
    ],
)
def test_bad_options_end_in_one_line(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.setattr("hessabs.training.look.where.open_run", lambda where: kinds.images())
    assert cli.main(["attack", f"--workdir={tmp_path}", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_needs_a_run(capsys):
    assert cli.main(["attack"]) == 2
    assert "`workdir` is required" in capsys.readouterr().err


@pytest.mark.slow
def test_some_images_are_of_all_classes_where_the_set_is_sorted_by_them(tmp_path):
    run = kinds.images()
    places = np.argsort(run.task.test.take(np.arange(130))["label"], kind="stable")
    task = run.task._replace(test=subset(run.task.test, places))
    for number, least in ((40, 9), (0, 10)):
        chosen = task.test.take(sample_places(number, 130))["label"]
        assert len({*chosen.tolist()}) >= least
        (tmp_path / str(number)).mkdir()
        record = attack(
            task, *run[1:3], tmp_path / str(number), Options(("fgsm",), (0.03,), num_examples=number)
        )
        assert record["images"] == len(chosen)


@pytest.mark.slow
def test_nothing_is_found_of_what_the_same_params_computed_otherwise(tmp_path):
    run, options = kinds.images(), Options(("fgsm",), (0.1,), num_examples=40)

    def accuracy(task):
        return [row["accuracy"] for row in attack(task, *run[1:3], tmp_path, options)["rows"]]

    before = accuracy(run.task)
    assert before[0] > 0.5
    mirrored = run.task._replace(logits=lambda *args: -run.task.logits(*args))
    assert accuracy(mirrored)[0] < 0.2
    assert accuracy(run.task._replace(bounds=(-1, 1)))[1] <= before[1]
    assert accuracy(run.task) == before


def test_examples_that_transfer_go_on_after_the_first_error_of_their_source():
    for name, entry in MENU.items():
        norm = entry.norms[0]
        own, source = (make(name, 0.1, Options(norm=norm, source=where)) for where in (None, "other"))
        always = entry.minimal or name in ("square", "ensemble")
        assert source.early_exit == always, name
        assert own.early_exit == (always or name in ("bim", "pgd", "mi_fgsm", "adam_pgd", "apgd")), name
