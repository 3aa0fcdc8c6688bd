"""Numbers of README.md and of the page of results are those of the tables of runs."""

import functools
import re
import statistics

import numpy as np
import pytest

from experiments import grid, table
from experiments.frontier import search
from experiments.frontier.problems import PROBLEMS, Point
from hessabs.training.look.results import cell

ROOT = grid.RESULTS.parents[1]
README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs/results/index.md").read_text()
VALUE = (ROOT / "docs/explanations/worth.md").read_text()
FIELDS = {
    "held-out %": "validation_accuracy",
    "held-out loss": "validation_loss",
    "test loss": "test_loss",
    "test %": "test_accuracy",
    "held-out PGD %": "validation_pgd_accuracy",
    "FGSM %": "fgsm_accuracy",
    "PGD %": "pgd_accuracy",
    "updates": "updates",
    "top eigenvalue": "eigenvalue",
}
LABELS = {  # of rows whose label is not that of their method and largest batch
    "FB, 3200 and above": "fb_3200",
    "BL, a fifth adversarial to the end, 128": "bl_kept_128",
    "`stability`, a fifth adversarial to the end, 16384": "stability_kept_16384",
    "SGD, a fifth adversarial, 128": "bl",
    "AdamW, 16": "adamw_16",
    **{f"Muon, {batch}": f"muon_{batch}" for batch in (64, 128)},
    **{f"Muon, `seesaw`, {batch}": f"seesaw_{batch}" for batch in (64, 128)},
    "SGD, half adversarial, 128": "bl_half",
    "SGD, half adversarial, weight decay, 128": "bl_half_decay_5e-4",
    "SGD, half adversarial, `ramp`, 128": "ramp_half",
    "SGD, half adversarial, weight decay, `ramp`, 128": "ramp_half_decay_5e-4",
    "Muon, half adversarial, `ramp`, 512": "ramp_muon_512",
    "Muon, `ramp`, 64": "ramp_64",
    "Muon, half adversarial, `seesaw`, weight decay, 4096": "seesaw_4096_decay_0.5",
    "Muon, half adversarial, `seesaw`, weight decay, 60 epochs, 8192": "seesaw_8192_60_decay_0.5",
    **{f"Muon, half adversarial, {batch}": f"muon_{batch}" for batch in (4096, 8192)},
    **{f"Muon, half adversarial, `seesaw`, {batch}": f"seesaw_{batch}" for batch in (4096, 8192)},
}

read = functools.cache(table.read)


def values(name, label, field):
    found = [run.summary[field] for run in read(grid.RESULTS / name).values() if run.label == label]
    assert found, f"{name} has no run {label}"
    return found


def updates(name, label):
    return statistics.mean(values(name, label, "updates"))


def seconds(label):
    return statistics.mean(values("one_accelerator", label, "seconds"))


def accuracy(name, label):
    return statistics.mean(values(name, label, "test_accuracy"))


@pytest.mark.parametrize(
    ("page", "place", "name", "least"),
    [
        pytest.param(README, 0, "far_fewer_updates", 7, id="README-far_fewer_updates"),
        pytest.param(README, 1, "fashion_mnist_mlp", 4, id="README-fashion_mnist_mlp"),
        pytest.param(PAGE, 0, "fashion_mnist_mlp", 8, id="results-fashion_mnist_mlp"),
        pytest.param(PAGE, 1, "fashion_mnist_c1", 8, id="results-fashion_mnist_c1"),
        pytest.param(VALUE, 0, "far_fewer_updates", 12, id="worth-far_fewer_updates"),
        pytest.param(VALUE, 1, "text_growth", 6, id="worth-text_growth"),
    ],
)
def test_tables_are_those_of_the_runs(page, place, name, least):
    head, *body = re.findall(r"^\| run \|.*\n\|[-|]+\n(?:\|.*\n)+", page, re.MULTILINE)[place].splitlines()
    titles = [title.strip() for title in head.split("|")][3:-1]
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in body[1:]]
    assert len(rows) >= least
    for method, largest, *cells in rows:
        column = largest.replace(",", "")
        label = LABELS.get(f"{method}, {column}", f"{method.lower()}_{column}")
        for title, shown in zip(titles, cells, strict=True):
            numbers = values(name, label, FIELDS[title])
            if shown.startswith("chance"):
                assert set(numbers) == {10.0}
            elif shown:
                digits = len(shown.split()[0].partition(".")[2])
                assert shown == cell(numbers, f"{{:,.{digits}f}}"), (label, title)


@functools.cache
def frontier():
    """The runs of each point of the MLP's frontier that did not diverge."""
    places = search.places(PROBLEMS["mlp"], read(grid.RESULTS / "frontier_mlp"))
    return {
        place.point: [run.summary for run in place.runs if "diverged" not in run.summary] for place in places
    }


def of_point(point, field):
    return [summary[field] for summary in frontier()[point]]


def test_the_table_of_the_frontier_is_that_of_its_runs():
    [lines] = re.findall(
        r"^\| optimiser, epochs \| first batch .*\n\|[-|]+\n((?:\|.*\n)+)", VALUE, re.MULTILINE
    )
    optimizer, epochs, shown = "", 0, 0
    for line in lines.splitlines():
        name, batch, *cells = (part.strip() for part in line.split("|")[1:-1])
        if name:
            optimizer, epochs = name.lower().split(", ")
        for i, rule in enumerate(("constant", "seesaw", "ramp")):
            updates, accuracy, pgd = cells[3 * i : 3 * i + 3]
            point = Point(optimizer, int(batch.replace(",", "")), int(epochs), rule)
            if not updates:
                assert point not in frontier()
                continue
            accuracies = of_point(point, "validation_accuracy")
            lost = 3 - len(accuracies)
            diverged = f", {('one', 'two', 'all')[lost - 1]} diverged" if lost else ""
            assert accuracy == cell(accuracies, "{:.2f}") + diverged, point
            assert updates == f"{statistics.mean(of_point(point, 'updates')):,.0f}"
            assert pgd == f"{statistics.mean(of_point(point, 'validation_pgd_accuracy')):.2f}"
            shown += 1
    assert shown == 44


def test_what_the_text_says_of_the_frontier():
    def mean(optimizer, batch, rule="constant", field="validation_accuracy"):
        return statistics.mean(of_point(Point(optimizer, batch, 10, rule), field))

    constant = {
        mean("muon", batch, field="updates"): mean("muon", batch) for batch in (16384, 8192, 2048, 1024)
    }
    gains, robust = [], []
    for batch in (1024, 2048, 8192):
        line = np.interp(mean("muon", batch, "seesaw", "updates"), list(constant), list(constant.values()))
        gains.append(mean("muon", batch, "seesaw") - line)
        pgd = "validation_pgd_accuracy"
        robust.append(mean("muon", batch, "seesaw", pgd) - mean("muon", batch, field=pgd))
    assert (f"{min(gains):.1f}", f"{max(gains):.1f}") == ("0.1", "0.2")
    assert (f"{min(robust):.1f}", f"{max(robust):.1f}") == ("0.7", "1.9")
    best = max(mean("sgd", batch) for batch in PROBLEMS["mlp"].batches)
    constant = {mean("sgd", batch, field="updates"): mean("sgd", batch) for batch in (1024, 512, 256)}
    gains = [
        mean("sgd", batch, "ramp")
        - np.interp(mean("sgd", batch, "ramp", "updates"), list(constant), list(constant.values()))
        for batch in (128, 256, 512)
    ]
    assert (f"{min(gains):.1f}", f"{max(gains):.1f}") == ("0.5", "1.5")
    assert best - mean("sgd", 256, "ramp") < 0.2
    ratios = [3900 / mean("sgd", batch, "ramp", "updates") for batch in (128, 256)]
    assert [f"{ratio:.1f}" for ratio in ratios] == ["4.4", "5.5"]
    constant = {
        mean("adamw", batch, field="updates"): mean("adamw", batch)
        for batch in reversed(PROBLEMS["mlp"].batches)
    }
    below = {
        (rule, batch): np.interp(mean("adamw", batch, rule, "updates"), list(constant), list(constant.values()))
        - mean("adamw", batch, rule)
        for rule, batch in [
            ("ramp", 128),
            *((rule, b) for rule in ("ramp", "seesaw") for b in (256, 512, 1024)),
        ]
    }
    assert abs(below.pop(("seesaw", 256))) < 0.1
    assert (f"{min(below.values()):.1f}", f"{max(below.values()):.1f}") == ("0.1", "0.7")
    assert best < mean("adamw", 1024)
    assert f"{mean('adamw', 128) - mean('adamw', 1024):.1f}" == "0.3"
    assert best == mean("sgd", 128) == pytest.approx(mean("muon", 16384), abs=0.1)
    assert mean("sgd", 128, field="updates") == 130 * mean("muon", 16384, field="updates")


def test_what_the_text_says_of_ramp_beside_the_baselines_of_its_settings():
    def mean(label, field):
        return statistics.mean(values("far_fewer_updates", label, field))

    pairs = [("bl_half", "ramp_half"), ("bl_half_decay_5e-4", "ramp_half_decay_5e-4")]
    for field, lost in (
        ("validation_accuracy", ["0.0", "0.4"]),
        ("test_accuracy", ["0.2", "0.4"]),
    ):
        assert [f"{mean(bl, field) - mean(ramp, field):.1f}" for bl, ramp in pairs] == lost, field
    robust = [mean(ramp, "validation_pgd_accuracy") - mean(bl, "validation_pgd_accuracy") for bl, ramp in pairs]
    assert f"{robust[0]:.1f}" == "0.4"  # "0.4 points more under PGD"
    assert abs(robust[1]) < 0.1  # "as robust"
    fewer = [mean(bl, "updates") / mean(ramp, "updates") for bl, ramp in pairs]
    assert [f"{ratio:.0f}" for ratio in fewer] == ["20", "12"]


def test_what_the_text_says_of_the_same_share_of_adversarial_examples():
    def lost(field):
        one, other = (
            values("far_fewer_updates", label, field) for label in ("bl_half", "seesaw_8192_60_decay_0.5")
        )
        return statistics.mean(one) - statistics.mean(other)

    assert max(lost("validation_accuracy"), lost("test_accuracy")) < 0.1
    assert 0.3 < lost("validation_pgd_accuracy") < lost("pgd_accuracy") < 0.5
    assert f"{35_100 / updates('far_fewer_updates', 'seesaw_8192_60_decay_0.5'):.0f}" == "163"
    gain = np.mean(values("far_fewer_updates", "bl_half_decay_5e-4", "pgd_accuracy")) - np.mean(
        values("far_fewer_updates", "bl_half", "pgd_accuracy")
    )
    assert f"{gain:.0f}" == "4"  # "four points under PGD"


def test_what_the_text_says_of_text():
    def below(run, line):
        (x, y), (first, low), (last, high) = run, *line
        part = np.log(x / first) / np.log(last / first)
        return low + part * (high - low) - y

    def point(label):
        return [statistics.mean(values("text_growth", label, f)) for f in ("updates", "validation_loss")]

    line = [point("muon_128"), point("muon_64")]
    found = [f"{below(point(label), line):.3f}" for label in ("seesaw_64", "ramp_64")]
    assert f"lies {found[0]} (`seesaw`) and {found[1]} (`ramp`) below the line" in " ".join(VALUE.split())
    places = {
        place.point: [
            statistics.mean(run.summary[f] for run in place.runs) for f in ("updates", "validation_loss")
        ]
        for place in search.places(PROBLEMS["text"], read(grid.RESULTS / "frontier_text"))
    }
    line = [places[Point("adamw", batch, 1)] for batch in (64, 16)]
    found = [f"{below(places[Point('adamw', 16, 1, rule)], line):.2f}" for rule in ("ramp", "seesaw")]
    assert f"which is {found[0]} and {found[1]} below the line" in " ".join(VALUE.split())


def test_what_the_text_says_of_the_advice():
    page = (grid.RESULTS / "advice/README.md").read_text()
    sgd, muon, text = re.findall(r"^\| (?:MLP|Char).* (\d\.\d\d) \|$", page, re.MULTILINE)
    said = re.search(
        r"run takes (\S+) of them for SGD on the MLP, (\S+) for Muon on text, and (\S+) for Muon on the MLP",
        " ".join(VALUE.split()),
    )
    assert said
    assert said.groups() == (sgd, text, muon)


WORTH, BEYOND, C1 = "hessian_worth", "go_beyond", "fashion_mnist_c1"


@pytest.mark.parametrize(
    ("sentence", "numbers"),
    [
        (
            r"ABS trains the MLP in (\S+) s to BL's (\S+) at the same accuracy, and ABSA in (\S+) ",
            [f"{seconds(label):.1f}" for label in ("mlp_abs", "mlp_bl", "mlp_absa")],
        ),
        (
            r"save updates: (\S+) to ABSA's (\S+) and BL's (\S+) on the MLP, for (\S+) and (\S+) points of",
            [
                *(f"{updates(WORTH, label):,.0f}" for label in ("stability_kept", "absa_kept", "bl_kept")),
                *(
                    f"{accuracy(WORTH, label) - accuracy(WORTH, 'stability_kept'):.1f}"
                    for label in ("absa_kept", "bl_kept")
                ),
            ],
        ),
        (
            r"and (\S+) to (\S+) and (\S+) on the convolutional network",
            [f"{updates(C1, label):,.0f}" for label in ("stability_kept_16384", "absa_16384", "bl_kept_128")],
        ),
        (
            r"above ABSA with (\S+) times fewer; with 1\.5 and growth in steps of a quarter it is above ABSA "
            r"with (\S+) times fewer, and (\S+) points below BL",
            [
                f"{updates(BEYOND, 'absa') / updates(BEYOND, 'stability_1.25'):.1f}",
                f"{updates(BEYOND, 'absa') / updates(BEYOND, 'stability_1.5_fine'):.1f}",
                f"{accuracy(BEYOND, 'bl_kept') - accuracy(BEYOND, 'stability_1.5_fine'):.1f}",
            ],
        ),
        (
            r"at 16,384 the convolutional one reaches (\S+) %",
            [f"{accuracy(C1, 'bl_16384'):.0f}"],
        ),
    ],
    ids=["one_accelerator", "hessian_worth", "fashion_mnist_c1", "go_beyond", "bl_16384"],
)
def test_numbers_in_the_text_are_those_of_the_runs(sentence, numbers):
    found = re.search(sentence, " ".join(PAGE.split()))
    assert found, "The page of results says this in other words now: write them here"
    assert list(found.groups()) == numbers


def test_what_the_text_says_in_words():
    # "the timer alone comes out the same with a third more updates"
    assert updates(WORTH, "timer") / statistics.mean(
        values("fashion_mnist_mlp", "absa_16000", "updates")[:2]
    ) == (pytest.approx(4 / 3, abs=0.05))
    # "With a threshold of 1.25 ... within 0.1 points of BL with ten times fewer updates, and above ABSA"
    assert abs(accuracy(BEYOND, "stability_1.25") - accuracy(BEYOND, "bl_kept")) < 0.1
    assert updates(BEYOND, "bl_kept") / updates(BEYOND, "stability_1.25") == pytest.approx(10, abs=0.5)
    assert accuracy(BEYOND, "stability_1.25") > accuracy(BEYOND, "absa")
    # "ABSA keeps or raises both with five to six times fewer updates"
    for name, smallest, label in (("fashion_mnist_mlp", "bl_128", "absa_16000"), (C1, "bl_128", "absa_16384")):
        assert 5 <= updates(name, smallest) / updates(name, label) < 6.5
        assert accuracy(name, label) > accuracy(name, smallest)
