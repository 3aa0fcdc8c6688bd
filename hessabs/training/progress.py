"""The progress bar of a run; silent where the output is no terminal."""

import sys
from typing import Any, Self


class Progress:
    """A bar over the examples of a run, in images per second and with the time left.

    A class, against the house rule: it is the one handle on a terminal.

    Args:
      total: Examples of the whole run.
      done: Examples trained on already.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            total=total,
            initial=done,
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            file=sys.stderr,
            disable=None,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def show(self, samples: int, **values: Any) -> None:
        """Move the bar and show values beside it.

        Args:
          samples: Examples trained on so far.
          **values: Names to numbers or strings; None shows as a dash.
        """
        text = {
            name: "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
            for name, value in values.items()
        }
        self._bar.set_postfix(text, refresh=False)
        self._bar.update(samples - self._bar.n)
