"""Pictures of spectra and landscapes. The only file here that needs matplotlib."""

from pathlib import Path
from typing import Any

import numpy as np

from hessabs.curvature.density import SpectralDensity, evaluate_density
from hessabs.curvature.landscape import Landscape

_LEGEND = 8  # more names than these would cover the picture


def draw_landscape(landscape: Landscape, path: str | Path, *, title: str = "") -> None:
    """Draw the loss along a line, or its contours on a plane, into an image file.

    Args:
      landscape: Points not evaluated stay empty.
      path: The file to write; its suffix says the format.
      title: Above the picture.
    """
    figure, axes = _figure(title)
    finite = np.ma.masked_invalid(landscape.values)
    if finite.ndim == 1:
        axes.plot(landscape.coordinates[0], finite, marker=".")
        axes.set(xlabel="step along the first direction", ylabel="loss")
    else:
        contours = axes.contourf(*landscape.coordinates, finite.T, levels=30)
        figure.colorbar(contours, ax=axes, label="loss")
        axes.set(xlabel="step along the first direction", ylabel="step along the second direction")
    figure.savefig(path)


def draw_density(
    density: SpectralDensity, path: str | Path, *, width: float | None = None, title: str = ""
) -> None:
    """Draw a spectral density on a logarithmic axis, with a band of one standard error, into an image file.

    Args:
      density, width: As in ``evaluate_density``; no width for a hundredth of the range of the nodes.
      path, title: As in ``draw_landscape``.
    """
    figure, axes = _figure(title)
    plot_density(density, axes, width=width)
    figure.savefig(path)


def plot_density(density: SpectralDensity, ax: Any, *, width: float | None = None) -> None:
    """Draw what ``draw_density`` draws into axes of matplotlib.

    Args:
      density, width: As in ``draw_density``.
      ax: The axes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from matplotlib.figure import Figure
      >>> from hessabs.curvature import spectral_density
      >>> ax = Figure().subplots()
      >>> plot_density(spectral_density(lambda v: v, jnp.ones(3), jax.random.key(0), num_iters=1), ax)
      >>> ax.get_xlabel()
      'eigenvalue'
    """
    low, high = float(np.nanmin(density.nodes)), float(np.nanmax(density.nodes))
    width = width or max((high - low) / 100, 1e-12)
    grid = np.linspace(low - 5 * width, high + 5 * width, 1000)
    curve, error = evaluate_density(density, grid, width)
    ax.semilogy(grid, curve)
    if np.isfinite(error).all():
        ax.fill_between(grid, np.maximum(curve - error, 1e-300), curve + error, alpha=0.3)
    ax.set(xlabel="eigenvalue", ylabel="density", ylim=(max(curve.max() * 1e-8, 1e-300), None))


def draw_spectra(spectra: dict[str, np.ndarray], path: str | Path, *, title: str = "") -> None:
    """Draw eigenvalues against their number, one line for each name (named up to eight), into an image file.

    Args:
      spectra: Eigenvalues, descending, by name.
      path, title: As in ``draw_landscape``.
    """
    figure, axes = _figure(title)
    for name, values in spectra.items():
        axes.plot(np.arange(1, len(values) + 1), values, marker=".", label=name)
    largest = max((float(np.nanmax(np.abs(v), initial=0)) for v in spectra.values()), default=0)
    axes.set_yscale("symlog", linthresh=largest / 1000 or 1)
    axes.set(xlabel="number", ylabel="eigenvalue")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(spectra) <= _LEGEND:
        axes.legend()
    figure.savefig(path)


def _figure(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes
