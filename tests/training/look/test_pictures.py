"""The picture: a real PNG whatever the runs hold."""

import pytest
from hessabs.training.reports.curves import draw_curves


def records(epochs, **changes):
    base = {"batch_size": 32, "lr": 0.1, "eigenvalue": 3.0, "test_accuracy": 50.0}
    return [{"epoch": epoch + 1, **base, **changes} for epoch in range(epochs)]


@pytest.mark.parametrize(
    "runs",
    [
        {"absa": records(3)},
        {"absa": records(100), "bl": records(2, eigenvalue=None)},
        {"absa": records(3, eigenvalue=None)},
        {"absa": records(2, eigenvalue=-1.0)},  # a log axis without a positive number
        {"absa": records(2, lr=0.0, test_accuracy=None, batch_size=None, eigenvalue=None)},
        {"absa": []},
        {},
    ],
    ids=["one", "two", "unmeasured", "negative", "nothing", "no epochs", "no runs"],
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
