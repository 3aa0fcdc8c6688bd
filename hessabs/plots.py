"""Results as pictures: each function draws one of them into axes of matplotlib, and returns the axes.

Without ``ax`` they are those of a new figure, which no state of pyplot knows:
``plots.density(found).figure.savefig("density.png")``. Nothing else in the package imports matplotlib.
"""

import contextlib
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from hessabs.attacks import Evaluation
from hessabs.attacks.norms import Bounds, Norm
from hessabs.attacks.outcomes import WORST
from hessabs.curvature import CriticalBatchSize, Landscape, SpectralDensity, Summary, evaluate_density

try:
    import matplotlib.figure
    from matplotlib import colors, font_manager, ticker
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.lines import Line2D
    from matplotlib.text import Text
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'hessabs.plots needs matplotlib: pip install "hessabs[train]"', name="matplotlib"
    ) from error

__all__ = [
    "curves",
    "density",
    "eigenvalues",
    "figure",
    "landscape",
    "log_axis",
    "noise_scale",
    "robustness",
    "summary",
]
_LABELS = {
    "batch_size": "batch size (examples)",
    "lr": "learning rate",
    "eigenvalue": "top Hessian eigenvalue",
    "gradient_norm": "norm of the total gradient",
    "test_accuracy": "test accuracy (%)",
    "test_loss": "test loss (nats)",
}
_DECIDED = ("batch_size", "lr")  # they hold until the next decision
_ENDS = "largest batch: not measured any more"
_NORMS: dict[Norm, str] = {"linf": "L-infinity norm", "l2": "L2 norm", "l1": "L1 norm"}
_DASHES = ("-", "--", ":")
_WIDE = 20  # a wider range than this asks for a logarithmic axis
_LEGEND = 8  # more names than these would cover the picture
_MARKED = 40  # more points than these are a line without marks
_LEVELS = np.linspace(0, 1, 12)[1:-1]  # of contours, on the scale of the colours
_FINE = 201  # points a side of a plane that is drawn smoothly


def eigenvalues(spectra: Mapping[str, ArrayLike] | ArrayLike, ax: Axes | None = None) -> Axes:
    """Draw eigenvalues against their number, a line for each name (named up to eight).

    Where they span more than a factor of 20 their sizes are on a logarithmic axis; negative ones are hollow.

    Args:
      spectra: Eigenvalues, or several arrays of them by name.
      ax: Axes to draw into; by default those of a new ``figure``.

    Example:
      >>> ax = eigenvalues({"training": [9.0, 0.1, -0.01], "test": [7.0, 0.2]})
      >>> ax.get_yscale(), [text.get_text() for text in ax.get_legend().get_texts()]
      ('log', ['training', 'test', 'negative'])
    """
    ax, named = _axes(ax), spectra if isinstance(spectra, Mapping) else {"": spectra}
    found = {name: np.asarray(values, np.float64) for name, values in named.items()}
    sizes = np.concatenate([[], *map(np.abs, found.values())])
    wide = _is_wide(sizes[sizes > 0])
    for place, (name, values) in enumerate(found.items()):
        numbers, color, below = np.arange(1, len(values) + 1), f"C{place}", values < 0
        shown = np.where(values == 0, np.nan, np.abs(values)) if wide else values
        ax.plot(numbers, shown, marker=".", color=color, label=name)
        ax.plot(numbers[below], shown[below], "o", color=color, markerfacecolor="white")
    negative = any((values < 0).any() for values in found.values())
    if wide:
        log_axis(ax, "y")
    elif negative:
        ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set(xlabel="number", xlim=(0.5, max([1, *map(len, found.values())]) + 0.5))
    ax.set(ylabel="size of the eigenvalue" if wide and negative else "eigenvalue")
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    if negative:
        ax.plot([], [], "o", color="0.4", markerfacecolor="white", label="negative")
    if len(found) <= _LEGEND and (negative or any(found)):
        ax.legend()
    return ax


def density(found: SpectralDensity, ax: Axes | None = None, *, width: float | None = None) -> Axes:
    """Draw a spectral density on a logarithmic axis, with a band of one standard error.

    Args:
      found, width: As in ``curvature.evaluate_density``; no width for a hundredth of the range of the nodes.
      ax: As in ``eigenvalues``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from hessabs.curvature import spectral_density
      >>> ax = density(spectral_density(lambda v: v, jnp.ones(3), jax.random.key(0), num_iters=1))
      >>> ax.get_xlabel()
      'eigenvalue'
    """
    ax = _axes(ax)
    low, high = float(np.nanmin(found.nodes)), float(np.nanmax(found.nodes))
    width = width or max((high - low) / 100, 1e-3 * abs(high), 1e-12)
    grid = np.linspace(low - 5 * width, high + 5 * width, 1000)
    curve, error = evaluate_density(found, grid, width)
    ax.plot(grid, curve)
    if np.isfinite(error).all():
        ax.fill_between(grid, np.maximum(curve - error, 1e-300), curve + error, alpha=0.3)
    least = max(curve.max() * 1e-8, 1e-300)
    ax.set(xlabel="eigenvalue", ylabel="density (share per unit)", ylim=(least, 3 * curve.max()))
    log_axis(ax, "y", (least, curve.max()))
    if low < 0 < high:
        ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)  # negative ones lie on its left
    return ax


def summary(found: Summary, ax: Axes | None = None) -> Axes:
    """Draw the density of ``curvature.summary``, its largest eigenvalues as ticks, and say the mean.

    Args:
      found: What ``curvature.summary`` returned.
      ax: As in ``eigenvalues``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from hessabs import curvature
      >>> operator = lambda v: jnp.array([1.0, 2.0, 3.0]) * v
      >>> summary(curvature.summary(operator, jnp.ones(3), jax.random.key(0), k=1)).get_title()
      'top 3, mean 2 of 3 eigenvalues'
    """
    ax = density(found.density, ax)
    for value in found.top.eigenvalues:
        ax.axvline(value, color="k", linewidth=0.8, ymax=0.05)
    mean = float(found.trace.value) / found.num_params
    ax.set_title(f"top {found.top.eigenvalues[0]:.3g}, mean {mean:.2g} of {found.num_params:,} eigenvalues")
    return ax


def landscape(found: Landscape, ax: Axes | None = None) -> Axes:
    """Draw the loss along a line, or smoothly on a plane with a bar of its colours; + is where the params are.

    Losses that span more than a factor of 20 are on a logarithmic scale.

    Args:
      found: What ``curvature.landscape`` returned; points not evaluated stay empty.
      ax: As in ``eigenvalues``.

    Example:
      >>> from hessabs.curvature import Landscape
      >>> at = np.linspace(-1, 1, 5)
      >>> landscape(Landscape((at,), at**2)).get_ylabel()
      'loss'
      >>> plane = landscape(Landscape((at, at), np.exp(9 * np.add.outer(at**2, at**2))))
      >>> [ax.get_ylabel() for ax in plane.figure.axes]
      ['step along direction 2 (times its length)', 'loss']
    """
    ax, known = _axes(ax), found.values[np.isfinite(found.values)]
    wide = known.size > 0 and known.min() > 0 and _is_wide(known)
    ax.set(xlabel="step along direction 1 (times its length)", ylabel="loss")
    if found.values.ndim == 1:
        ax.plot(found.coordinates[0], np.ma.masked_invalid(found.values), marker=".")
        if wide:
            log_axis(ax, "y")
        return ax
    ax.set(ylabel="step along direction 2 (times its length)")
    if not known.size:
        return ax
    x, y = found.coordinates
    x, y, values = _fine(x, y, np.log(found.values) if wide else found.values)
    values = np.exp(values) if wide else values
    norm = (colors.LogNorm if wide else colors.Normalize)(values.min(), values.max())
    mesh = ax.pcolormesh(x, y, values.T, norm=norm, shading="gouraud", rasterized=True)
    ax.contour(x, y, values.T, norm.inverse(_LEVELS), colors="white", linewidths=0.5, alpha=0.6)
    bar = ax.figure.colorbar(mesh, ax=ax, label="loss")
    if wide:
        log_axis(bar.ax, "y", known)
    ax.plot(0, 0, "+", color="white", markersize=10)
    return ax


def robustness(
    rows: Sequence[Evaluation],
    ax: Axes | None = None,
    *,
    norm: Norm = "linf",
    bounds: Bounds | None = (0.0, 1.0),
) -> Axes:
    """Draw the accuracy against epsilon, a line for each attack; the worst case is a wide band below them.

    Args:
      rows: What ``attacks.evaluate`` returned: the clean accuracy, then the attacks.
      ax: As in ``eigenvalues``.
      norm, bounds: Those of the evaluation, which say what the unit of epsilon is.

    Example:
      >>> row = Evaluation("clean", 0.0, 0.9, 0.0, 0.0, 0.0, np.array([]), np.array([]), 0.0)
      >>> robustness([row, row._replace(attack="pgd", epsilon=0.1, accuracy=0.4)]).get_xlabel()
      'epsilon (L-infinity norm, inputs in [0, 1])'
    """
    ax, (clean, *attacked) = _axes(ax), rows
    lines = {row.attack: [(0.0, 100 * clean.accuracy)] for row in attacked}
    for row in sorted(attacked, key=lambda row: row.epsilon):
        lines[row.attack].append((row.epsilon, 100 * row.accuracy))
    band = {"color": "0.8", "linewidth": 7, "zorder": 1, "solid_capstyle": "round"}
    for name, points in lines.items():
        ax.plot(*np.transpose(points), label=name, **(band if name == WORST else {"marker": "."}))
    unit = "" if bounds is None else ", inputs in [{:g}, {:g}]".format(*bounds)
    ax.set(xlabel=f"epsilon ({_NORMS[norm]}{unit})", ylabel="accuracy (%)", ylim=(0, 100))
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], field: str, ax: Axes | None = None) -> Axes:
    """Draw one number of records by epoch, a line for each run, which ``ax.legend()`` names.

    Batch sizes and learning rates are steps on a logarithmic axis with plain numbers. Other numbers, but for
    accuracies, are on one where they span more than a factor of 20. An eigenvalue that is no longer measured,
    for the batch is the largest, ends in a cross.

    Args:
      runs: The records of each run by its name: ``training.Result.records``, or the lines of metrics.jsonl.
      field: The number of each record: "batch_size", "lr", "eigenvalue", "test_accuracy", say.
      ax: As in ``eigenvalues``.

    Example:
      >>> sizes = {"absa": [{"epoch": 1, "batch_size": 32}, {"epoch": 2, "batch_size": 64}]}
      >>> ax = curves(sizes, "batch_size")
      >>> [text.get_text() for text in ax.get_yticklabels()]
      ['32', '64']
    """
    ax, decided = _axes(ax), field in _DECIDED
    ends: list[Line2D] = []
    for place, (name, records) in enumerate(runs.items()):
        known = [r for r in records if r.get(field) is not None and (r[field] > 0 or not decided)]
        if not known:
            continue
        color, dashes = f"C{place}", _DASHES[place // 10 % len(_DASHES)]  # there are ten colours
        style, marker = "steps-mid" if decided else "default", "." if len(known) < _MARKED else ""
        epochs, values = zip(*((r["epoch"], r[field]) for r in known), strict=True)
        ax.plot(epochs, values, dashes, color=color, label=name, drawstyle=style, marker=marker)
        sizes = {r["epoch"]: r["batch_size"] for r in records if "batch_size" in r}
        later = {epoch: size for epoch, size in sizes.items() if epoch > epochs[-1]}
        has_grown = {*later.values()} == {max(sizes.values(), default=0)} != {*sizes.values()}
        longest = max((b - a for a, b in itertools.pairwise(epochs)), default=1)
        if field == "eigenvalue" and has_grown and max(later) - epochs[-1] >= longest:
            ends += ax.plot(epochs[-1], values[-1], "X", color=color, label="_" if ends else _ENDS)
    if ends:
        ax.legend(handles=ends[:1], fontsize=8)
    drawn = np.concatenate([[], *(np.asarray(line.get_ydata()) for line in ax.lines)])
    if decided or ("accuracy" not in field and (drawn > 0).all() and _is_wide(drawn)):
        log_axis(ax, "y", sizes=field == "batch_size")
    ax.set(xlabel="epoch", ylabel=_LABELS.get(field, field.replace("_", " ")))
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(alpha=0.3)
    return ax


def noise_scale(found: CriticalBatchSize, ax: Axes | None = None) -> Axes:
    """Draw the gradient noise scale of each layer with its error, and of the whole network as a line.

    Args:
      found: What ``curvature.critical_batch_size`` returned; what is not finite is left out.
      ax: As in ``eigenvalues``.

    Example:
      >>> found = CriticalBatchSize(300.0, 20.0, 3.0, 0.01, {"hidden": (250.0, 30.0), "last": (400.0, 90.0)})
      >>> [text.get_text() for text in noise_scale(found).get_yticklabels()]
      ['hidden', 'last']
    """
    ax = _axes(ax)
    ax.set_yticks(range(len(found.layers)), list(found.layers))
    for place, (value, error) in enumerate(found.layers.values()):
        if np.isfinite(value):
            ax.errorbar(value, place, xerr=np.nan_to_num(error), fmt="o", color="C0", capsize=3)
    if np.isfinite(found.value):
        ax.axvline(found.value, linestyle="--", color="C1", label="whole network")
        ax.legend()
    ax.set(xlabel="noise scale (examples)", xlim=(0, None), ylim=(max(len(found.layers), 1) - 0.5, -0.5))
    return ax


def log_axis(
    ax: Axes,
    which: Literal["x", "y"],
    values: Sequence[float] | np.ndarray = (),
    *,
    sizes: bool = False,
    ticks: int = 9,
) -> Axes:
    """Make an axis logarithmic, with at least three ticks that are numbers as one says them: no powers.

    Args:
      ax: Axes in which all is drawn.
      which: The axis.
      values: What is drawn along it, positive; by default what is positive of the lines.
      sizes: Whether the ticks are the values themselves, as of batch sizes, as far as there is room.
      ticks: About how many there may be: fewer along the x of a narrow panel.

    Example:
      >>> ax = figure().subplots()
      >>> lines = ax.plot([32, 64, 4096], [1, 2, 3])
      >>> ax = log_axis(ax, "x", sizes=True)
      >>> [text.get_text() for text in ax.get_xticklabels()]
      ['32', '64', '4,096']
    """
    axis = {"x": ax.xaxis, "y": ax.yaxis}[which]
    if not len(values):
        drawn = [line.get_data()["xy".index(which)] for line in ax.lines]
        values = [value for line in drawn for value in np.asarray(line, np.float64) if value > 0]
    if not len(values):
        return ax
    low, high = min(values), max(values)
    ax.set(**{f"{which}scale": "log"})
    axis.set_minor_formatter(ticker.NullFormatter())
    if sizes:
        shown: list[int] = []
        apart = max(1.7, (high / low) ** (1 / ticks))
        for size in sorted({int(value) for value in values}, reverse=True):
            if not shown or shown[-1] >= apart * size:
                shown.append(size)
        shown.reverse()
        axis.set_ticks(shown, [f"{size:,}" for size in shown])
        axis.set_minor_locator(ticker.NullLocator())
        return ax
    if high < 1.5 * low:  # nearly one number: a range around it, so that ticks are in it
        ax.set(**{f"{which}lim": (low / 2, high * 2)})
    low, high = sorted(axis.get_view_interval())
    decades = np.log10(high / low)
    if decades < 1:
        axis.set_major_locator(ticker.MaxNLocator(min(ticks, 6), steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))
        axis.set_minor_locator(ticker.NullLocator())
    else:
        subs = (1, 2, 5) if decades < ticks / 3 else (1, 3) if decades < 3 else (1,)
        axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=max(ticks, 3)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    return ax


class _Figure(matplotlib.figure.Figure):
    """A figure that makes its text legible before it is drawn."""

    def draw(self, renderer: RendererBase) -> None:
        for text in self.findobj(Text):
            _make_legible(text)
        super().draw(renderer)


def figure(width: float = 6, height: float = 4) -> matplotlib.figure.Figure:
    """Make an empty figure, outside pyplot, in which nothing overlaps.

    Letters that its font lacks are drawn with an installed one that has them, or else escaped.

    Args:
      width, height: In inches.

    Returns:
      The figure: ``subplots`` makes its axes, ``savefig`` writes it.

    Example:
      >>> figure(8, 3).get_size_inches().tolist()
      [8.0, 3.0]
    """
    return _Figure(figsize=(width, height), layout="constrained")


def _axes(ax: Axes | None) -> Axes:
    return figure().subplots() if ax is None else ax


def _is_wide(values: Sequence[float] | np.ndarray) -> bool:
    return len(values) > 0 and max(values) > _WIDE * min(values)


def _fine(x: np.ndarray, y: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interpolate a grid by cubic splines, where all of it is known and large enough."""
    if min(values.shape) < 4 or not np.isfinite(values).all():
        return x, y, np.ma.masked_invalid(values)
    from scipy.interpolate import RectBivariateSpline

    fine = np.linspace(x[0], x[-1], _FINE), np.linspace(y[0], y[-1], _FINE)
    between = RectBivariateSpline(x, y, values)(*fine)
    return *fine, np.clip(between, values.min(), values.max())


def _make_legible(text: Text) -> None:
    text.set_parse_math(False)  # names of runs and classes may hold dollars
    own = font_manager.get_font(font_manager.findfont(text.get_fontproperties()))
    lacking = frozenset(c for c in text.get_text() if c != "\n" and not own.get_char_index(ord(c)))
    if not lacking:
        return
    family = _family_with(lacking)
    if family is not None:
        text.set_fontfamily([*text.get_fontfamily(), family])
    else:
        text.set_text("".join(ascii(c)[1:-1] if c in lacking else c for c in text.get_text()))


@functools.cache
def _family_with(letters: frozenset[str]) -> str | None:
    """Find an installed font that has all of the letters."""
    for entry in font_manager.fontManager.ttflist:
        if entry.style == "normal" and not entry.name.startswith("Last Resort"):
            with contextlib.suppress(OSError, RuntimeError):
                font = font_manager.get_font(entry.fname)
                if all(font.get_char_index(ord(c)) for c in letters):
                    return entry.name
    return None
