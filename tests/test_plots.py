"""The plots say what they were given, with ticks that can be read whatever the range."""

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure

from hessabs import plots
from hessabs.attacks import Evaluation
from hessabs.batch_size import methods
from hessabs.batch_size.settings import Abs, Bl, PlanSettings
from hessabs.curvature import Landscape
from hessabs.training.curves import draw_curves
from hessabs.training.look import pictures
from hessabs.training.look.pictures import draw_tracked


def records(epochs, **changes):
    base = {"batch_size": 32, "lr": 0.1, "eigenvalue": 3.0, "test_accuracy": 50.0}
    return [{"epoch": epoch + 1, **base, **changes} for epoch in range(epochs)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, and not saved."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure))
    return figures


def ticks(ax, which="y"):
    """The texts of ticks that are within an axis."""
    axis = getattr(ax, f"{which}axis")
    low, high = sorted(axis.get_view_interval())
    place = "xy".index(which)
    return [t.get_text() for t in axis.get_majorticklabels() if low <= t.get_position()[place] <= high]


@pytest.mark.parametrize(
    "runs",
    [
        {"absa": records(100), "bl": records(2, eigenvalue=None)},
        {"absa": records(2, eigenvalue=-1.0), "bl": []},
        {"absa": records(2, lr=0.0, test_accuracy=None, batch_size=None, eigenvalue=None)},
        {"absa": [{"epoch": 1, "lr": 0.1}]},  # a task without accuracy
        {},
    ],
    ids=["two", "negative", "nothing", "missing", "no runs"],
)
def test_writes_a_png(tmp_path, runs):
    from matplotlib import image

    draw_curves(tmp_path / "curves.png", runs)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG\r\n")
    pixels = image.imread(tmp_path / "curves.png")
    assert pixels.shape == (840, 1200, 4)


@pytest.mark.parametrize("epochs", [1, 2, 12])
def test_what_no_run_has_has_no_panel_and_ticks_are_whole_epochs(drawn, epochs):
    draw_curves("", {"bl": records(epochs, eigenvalue=None), "fb": records(epochs, eigenvalue=float("nan"))})
    draw_curves("", {"bl": records(epochs, eigenvalue=None), "abs": records(epochs)})
    draw_curves("", {})
    names = ["batch size (examples)", "learning rate", "top Hessian eigenvalue", "test accuracy (%)"]
    assert [axis.get_ylabel() for axis in drawn[0].axes] == [names[0], names[1], names[3]]
    assert [axis.get_ylabel() for axis in drawn[1].axes] == names
    assert len(drawn[2].axes) == 4
    for axis in drawn[0].axes + drawn[1].axes:
        assert {*ticks(axis, "x")} <= {str(epoch) for epoch in range(1, epochs + 1)}
        assert ticks(axis, "x")


def test_a_single_eigenvalue_has_a_whole_number():
    assert ticks(plots.eigenvalues([3.0]), "x") == ["1"]


def test_shows_the_data(tmp_path):
    from matplotlib import image

    for name, runs in (("empty", {"a": []}), ("full", {"a": records(3)})):
        draw_curves(tmp_path / f"{name}.png", runs)
    empty, full = (image.imread(tmp_path / f"{name}.png") for name in ("empty", "full"))
    # Blue of the first colour, in every quarter of the full picture and nowhere in the empty one.
    for rows in (slice(0, 420), slice(420, 840)):
        for columns in (slice(0, 600), slice(600, 1200)):
            assert _blue(full[rows, columns]) > 50
            assert _blue(empty[rows, columns]) == 0


def _blue(pixels):
    return int(((pixels[..., 2] - pixels[..., 0]) > 0.3).sum())


def test_tracked_curves_are_drawn_as_recorded(drawn):
    lines = [
        {"epoch": 1, "batch_size": 1, "eigenvalue": 3.0, "last_layer_eigenvalue": 1.0, "gradient_norm": 0.5},
        {"epoch": 2, "batch_size": 1, "eigenvalue": None, "last_layer_eigenvalue": 2.0, "gradient_norm": 0.25},
        {"epoch": 3, "batch_size": 1, "eigenvalue": 4.0, "last_layer_eigenvalue": 3.0, "gradient_norm": 0.125},
    ]
    assert draw_tracked("", lines)
    eigenvalues, gradient = drawn[0].axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in eigenvalues.lines}
    assert curves == {"whole network": [[1, 3], [3, 4]], "last layer's block": [[1, 1], [2, 2], [3, 3]]}
    assert gradient.lines[0].get_ydata().tolist() == [0.5, 0.25, 0.125]
    assert not draw_tracked("", [{"epoch": 1, "eigenvalue": None}])
    assert len(drawn) == 1


def test_axes_are_in_numbers_and_steps_and_an_eigenvalue_that_ends_says_why(drawn):
    sizes = [32, 64, 96, 128, 256, 512, 512, 512]
    lines = [
        {
            **record,
            "batch_size": size,
            "lr": 0.1 * size / 32,
            "eigenvalue": None if size == 512 else 2.0 + place,
        }
        for place, (record, size) in enumerate(zip(records(8), sizes, strict=True))
    ]
    draw_curves("", {"absa": lines})
    draw_curves("", {"absa": lines, "bl": records(8)})
    draw_curves("", {"bl": records(8)})
    draw_tracked("", lines)
    for figure, ends in zip(drawn, (True, True, False, True), strict=True):
        for axis in figure.axes:
            if axis.get_ylabel() != "batch size (examples)":
                assert len(shown := ticks(axis)) >= 3
                assert all(float(text) > 0 for text in shown)  # no power
            decided = axis.get_ylabel() in ("batch size (examples)", "learning rate")
            style = "steps-mid" if decided else "default"
            assert {line.get_drawstyle() for line in axis.lines if line.get_marker() != "X"} <= {style}
            if "eigenvalue" in axis.get_ylabel():
                texts = [] if axis.get_legend() is None else axis.get_legend().get_texts()
                assert any("largest batch" in text.get_text() for text in texts) == ends
    assert [t.get_text() for t in drawn[0].axes[0].get_yticklabels()] == ["32", "64", "128", "256", "512"]


def test_an_eigenvalue_that_is_measured_seldom_has_not_ended(drawn):
    lines = [{**r, "batch_size": 32, "eigenvalue": 2.0 if r["epoch"] in (3, 6) else None} for r in records(8)]
    grown = [{**line, "batch_size": 32 if line["epoch"] < 4 else 64} for line in lines]
    ended = [{**line, "eigenvalue": 2.0 if line["epoch"] < 5 else None} for line in grown]
    for known, ends in ((lines, False), (grown, False), (ended, True)):
        axis = plots.curves({"a": known}, "eigenvalue", plots.figure(3, 3).subplots())
        assert (axis.get_legend() is not None) == ends


def test_the_picture_of_a_plan_has_a_line_for_each_bound(drawn):
    run = PlanSettings(epochs=12, batch_size=64)
    for rule in (Abs(max_batch_size=256), Bl()):
        pictures.draw_plans(
            "", methods.make_plans(run, rule, 1280), lambda plan: [0.1] * len(plan.epochs), "a plan"
        )
    assert [[len(axes.get_lines()) for axes in figure.axes] for figure in drawn] == [[2, 2], [1, 1]]
    assert ticks(drawn[0].axes[0]) == ["64", "128", "256"]


@pytest.mark.parametrize(
    "values",
    [
        *(np.geomspace(10, 1, 5), np.geomspace(1e3, 1e-9, 20), -np.geomspace(1e-3, 5, 8), [3.0], [-2e-7]),
        *([5.0, 1e-4, 0.0, -0.2], [5.0, 4.0, -3.0], [0.0, 0.0], []),
    ],
    ids=["decade", "twelve", "all negative", "one", "one negative", "mixed", "narrow", "zero", "none"],
)
def test_a_spectrum_has_ticks_and_shows_what_is_negative(values):
    values = np.asarray(values)
    ax = plots.eigenvalues({"training": values})
    assert len(ticks(ax)) >= 3
    hollow = ax.lines[1].get_xdata().tolist()
    assert hollow == (1 + np.flatnonzero(values < 0)).tolist()
    assert ("negative" in [text.get_text() for text in ax.get_legend().get_texts()]) == bool(hollow)
    sizes = ax.lines[0].get_ydata()
    np.testing.assert_allclose(np.nan_to_num(sizes), np.abs(values) if ax.get_yscale() == "log" else values)


@pytest.mark.parametrize("span", [1.0001, 1.6, 9.0, 30.0, 1e3, 1e12])
def test_a_logarithmic_axis_has_three_ticks_at_least(span):
    for low in (2.7e-5, 8.0):
        ax = plots.figure().subplots()
        ax.plot([low, low * span])
        assert len({*ticks(plots.log_axis(ax, "y", [low, low * span]))}) >= 3
        assert 3 <= len({*ticks(plots.log_axis(ax, "y", [low, low * span], ticks=4))}) <= 7


def test_the_worst_case_hides_no_attack():
    row = Evaluation("clean", 0.0, 0.9, 0.0, 0.0, 0.0, np.array([]), np.array([]), 0.0)
    attacked = [row._replace(attack=name, epsilon=0.1, accuracy=0.4) for name in ("pgd", "worst case")]
    ax = plots.robustness([row, *attacked], norm="l2", bounds=(0.0, 255.0))
    pgd, worst = ax.lines
    assert worst.get_zorder() < pgd.get_zorder()
    assert worst.get_linewidth() > 3 * pgd.get_linewidth()
    assert ax.get_xlabel() == "epsilon (L2 norm, inputs in [0, 255])"


@pytest.mark.parametrize("steep", [False, True])
def test_a_plane_is_smooth_exact_on_its_grid_and_logarithmic_over_decades(steep):
    at = np.linspace(-1, 1, 11)
    values = np.add.outer(at**2, 2 * at**2) + 0.5
    values = np.exp(3 * values) if steep else values
    ax = plots.landscape(Landscape((at, at), values))
    mesh, fine = ax.collections[0], ax.collections[0].get_array().reshape(201, 201)
    np.testing.assert_allclose(fine[::20, ::20], values.T, rtol=1e-6)
    assert type(mesh.norm).__name__ == ("LogNorm" if steep else "Normalize")
    assert len(ticks(ax.figure.axes[1])) >= 3
    values[3, 3] = np.nan  # not evaluated yet: drawn as it is
    plots.landscape(Landscape((at, at), values)).figure.savefig(io.BytesIO())


def test_a_sheet_says_the_true_label_the_predictions_and_the_attack(drawn):
    images = np.zeros((1, 2, 2, 1))
    pictures.draw_sheet("", pictures.Sheet("apgd", 0.1, images, images, ["cat"], ["cat"], ["dog"]))
    texts = [ax.get_title() for ax in drawn[0].axes]
    assert texts == ["true cat\npredicted cat", "largest change 0", "apgd:\npredicted dog"]
    assert drawn[0].get_suptitle() == "apgd, the strongest attack, at epsilon 0.1"


def test_a_sheet_is_in_the_units_of_the_inputs(drawn):
    clean, attacked = np.full((1, 2, 2, 1), -1.0), np.full((1, 2, 2, 1), -0.7)
    sheet = pictures.Sheet("fgsm", 0.3, clean, attacked, ["cat"], ["cat"], ["dog"], (-1.0, 1.0))
    pictures.draw_sheet("", sheet)
    before, change, after = drawn[0].axes
    assert change.get_title() == "largest change 0.3"
    assert before.images[0].get_array()[0, 0] == 0
    assert after.images[0].get_array()[0, 0] == pytest.approx(0.15)


@pytest.mark.parametrize("family", [None, "DejaVu Serif"])
def test_letters_without_a_glyph_are_escaped_or_drawn_in_another_font(monkeypatch, family):
    monkeypatch.setattr(plots, "_family_with", lambda letters: family)
    ax = plots.curves({"実験": records(2)}, "lr")
    text = ax.legend().get_texts()[0]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        ax.figure.savefig(io.BytesIO())
    if family is None:
        assert not warned
        assert text.get_text() == "\\u5b9f\\u9a13"
    else:
        assert text.get_fontfamily()[-1] == family
    monkeypatch.undo()
    assert plots._family_with.__wrapped__(frozenset("é")) is not None
    assert plots._family_with.__wrapped__(frozenset("\U0010fffd")) is None  # for private use: nobody draws it


def test_dollars_in_names_are_no_mathematics():
    names = {"$5 bill": records(2), r"$\nothing$": records(2)}
    ax = plots.curves(names, "lr")
    texts = ax.legend().get_texts()
    ax.figure.savefig(io.BytesIO())  # Matplotlib would raise for a command that it does not know
    assert [text.get_text() for text in texts] == list(names)


@pytest.mark.slow
def test_what_to_install_is_one_line_and_the_package_needs_no_matplotlib():
    code = "import sys; sys.modules['matplotlib'] = None; import hessabs.training; import hessabs.plots"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = 'ModuleNotFoundError: hessabs.plots needs matplotlib: pip install "hessabs[train]"'
    assert result.stderr.splitlines()[-1] == last
