"""Numbers of README.md and of the page of results are those of the tables of runs."""

import functools
import re
import statistics

import pytest

from experiments import grid, table
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
    "Muon, half adversarial, `seesaw`, weight decay, 4096": "seesaw_4096_decay_0.5",
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
        pytest.param(VALUE, 0, "far_fewer_updates", 8, id="worth-far_fewer_updates"),
        pytest.param(VALUE, 1, "text_growth", 5, id="worth-text_growth"),
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
