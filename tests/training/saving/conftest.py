import pytest

from hessabs.training import curves


@pytest.fixture(scope="module")
def empty_curves():
    """No pictures, which take longer than these runs; that of `test_loop.py` is real."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "draw_curves", lambda path, runs: path.touch())
        yield
