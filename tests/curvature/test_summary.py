"""The spectrum in one call is what its parts say, of a matrix whose spectrum is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from hessabs import plots
from hessabs.curvature import summary

VALUES = np.linspace(-1.0, 2.0, 30).astype(np.float32)


def test_it_knows_the_top_the_trace_and_the_density_of_a_known_spectrum():
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))[0].astype(np.float32)
    matrix = jnp.asarray(rotation * VALUES @ rotation.T)
    found = summary(lambda v: matrix @ v, jnp.zeros(30), jax.random.key(0), k=2, num_matvecs=200)
    np.testing.assert_allclose(found.top.eigenvalues, [2.0, VALUES[-2]], rtol=1e-2)
    assert abs(found.trace.value - VALUES.sum()) < 4 * found.trace.standard_error
    weights = found.density.weights
    mean = (weights * found.density.nodes).sum() / weights.sum()
    assert mean == pytest.approx(VALUES.mean(), abs=0.3)
    assert found.num_params == 30


def test_the_plot_says_the_top_and_the_mean():
    found = summary(lambda v: VALUES * v, jnp.zeros(30), jax.random.key(0), k=1)
    ax = Figure().subplots()
    plots.summary(found, ax)
    assert ax.get_title() == "top 2, mean 0.5 of 30 eigenvalues"  # the trace of a diagonal is exact
    assert len(ax.lines) == 3  # the density, the top, zero
