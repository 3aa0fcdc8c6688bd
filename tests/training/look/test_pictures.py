"""The pictures: a real PNG whatever the runs hold, and what was recorded in it."""

import pytest
from matplotlib.figure import Figure

from hessabs.training.look.pictures import draw_curves, draw_tracked


def records(epochs, **changes):
    base = {"batch_size": 32, "lr": 0.1, "eigenvalue": 3.0, "test_accuracy": 50.0}
    return [{"epoch": epoch + 1, **base, **changes} for epoch in range(epochs)]


@pytest.mark.parametrize(
    "runs",
    [
        {"absa": records(100), "bl": records(2, eigenvalue=None)},
        {"absa": records(2, eigenvalue=-1.0), "bl": []},  # a log axis without a positive number
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


def test_tracked_curves_are_drawn_as_recorded(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: drawn.append(figure))
    lines = [
        {"epoch": 1, "eigenvalue": 3.0, "last_layer_eigenvalue": 1.0, "gradient_norm": 0.5},
        {"epoch": 2, "eigenvalue": None, "last_layer_eigenvalue": 2.0, "gradient_norm": 0.25},
        {"epoch": 3, "eigenvalue": 4.0, "last_layer_eigenvalue": 3.0, "gradient_norm": 0.125},
    ]
    assert draw_tracked(tmp_path / "tracked.png", lines)
    eigenvalues, gradient = drawn[0].axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in eigenvalues.lines}
    assert curves == {"whole network": [[1, 3], [3, 4]], "last layer's block": [[1, 1], [2, 2], [3, 3]]}
    assert gradient.lines[0].get_ydata().tolist() == [0.5, 0.25, 0.125]
    assert not draw_tracked(tmp_path / "none.png", [{"epoch": 1, "eigenvalue": None}])
    assert len(drawn) == 1


def test_axes_are_in_numbers_and_steps_and_an_eigenvalue_that_ends_says_why(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: drawn.append(figure))
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
    draw_curves(tmp_path / "one.png", {"absa": lines})
    draw_curves(tmp_path / "two.png", {"absa": lines, "bl": records(8)})
    draw_curves(tmp_path / "bl.png", {"bl": records(8)})
    for figure, notes in zip(drawn, (["largest batch:\nnot measured\nany more"], [], []), strict=True):
        batch, lr, eigenvalue, accuracy = figure.axes
        figure.draw_without_rendering()
        for axis in (lr, eigenvalue):
            low, high = axis.get_ylim()
            shown = {t.get_text() for t in axis.get_yticklabels() if low <= t.get_position()[1] <= high}
            assert len(shown) >= 3
            assert {f"{float(text):g}" for text in shown} == shown
        assert {line.get_drawstyle() for axis in (batch, lr) for line in axis.lines} == {"steps-mid"}
        assert accuracy.lines[0].get_drawstyle() == "default"
        assert [text.get_text() for text in eigenvalue.texts] == notes
    assert [t.get_text() for t in drawn[0].axes[0].get_yticklabels()] == ["512", "256", "128", "64", "32"]
