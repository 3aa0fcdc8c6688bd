"""The Hessian of PyTorch on the same weights: dense in float64, and PyHessian's top eigenvalue."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import curvature

torch = pytest.importorskip("torch", reason="the extra `peers` is not installed")

SIZES = (6, 5, 3)
SAME = {"rtol": 1e-9, "atol": 1e-12}  # float64 on both sides
POWER_ITERATION = 1e-2  # relative: PyHessian stops on a change of 1e-3 of the eigenvalue, in float32


def loss_fn(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), batch["y"][:, None], axis=1))


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    params = {
        "b1": rng.normal(size=SIZES[1]),
        "b2": rng.normal(size=SIZES[2]),
        "w1": rng.normal(size=SIZES[:2]),
        "w2": rng.normal(size=SIZES[1:]),
    }
    return params, {"x": rng.normal(size=(20, SIZES[0])), "y": rng.integers(0, SIZES[2], 20)}


def torch_loss(flat, batch):
    sizes = [SIZES[1], SIZES[2], SIZES[0] * SIZES[1], SIZES[1] * SIZES[2]]
    b1, b2, w1, w2 = torch.split(flat, sizes)
    hidden = torch.tanh(torch.tensor(batch["x"]) @ w1.reshape(SIZES[:2]) + b1)
    logits = hidden @ w2.reshape(SIZES[1:]) + b2
    return torch.nn.functional.cross_entropy(logits, torch.tensor(batch["y"]))


def test_eigenpairs_are_those_of_the_dense_torch_hessian(problem, x64):
    params, batch = problem
    flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.asarray, params))
    dense = torch.autograd.functional.hessian(lambda p: torch_loss(p, batch), torch.tensor(np.asarray(flat)))
    dense = dense.numpy()
    operator = curvature.hessian(loss_fn, jax.tree.map(jnp.asarray, params), batch)
    v = unravel(jnp.asarray(np.random.default_rng(1).normal(size=flat.size)))
    product, _ = jax.flatten_util.ravel_pytree(operator(v))
    np.testing.assert_allclose(product, dense @ jax.flatten_util.ravel_pytree(v)[0], **SAME)
    pairs = curvature.eigsh(operator, v, 5, which="BE", rtol=1e-10)
    values = np.linalg.eigvalsh(dense)
    np.testing.assert_allclose(pairs.eigenvalues, np.concatenate([values[::-1][:3], values[:2][::-1]]), **SAME)


@pytest.mark.filterwarnings("ignore:Using backward")  # how PyHessian differentiates twice
def test_top_eigenvalue_is_that_of_pyhessian(problem):
    pyhessian = pytest.importorskip("pyhessian", reason="the extra `peers` is not installed")
    params, batch = problem
    model = torch.nn.Sequential(torch.nn.Linear(*SIZES[:2]), torch.nn.Tanh(), torch.nn.Linear(*SIZES[1:]))
    with torch.no_grad():
        for layer, weight, bias in ((model[0], "w1", "b1"), (model[2], "w2", "b2")):
            layer.weight.copy_(torch.tensor(params[weight].T))
            layer.bias.copy_(torch.tensor(params[bias]))
    data = (torch.tensor(batch["x"], dtype=torch.float32), torch.tensor(batch["y"]))
    torch.manual_seed(0)
    peer = pyhessian.hessian(model, torch.nn.CrossEntropyLoss(), data=data, cuda=False)
    [theirs], _ = peer.eigenvalues(maxIter=500, tol=1e-4)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    batch = {"x": jnp.asarray(batch["x"], jnp.float32), "y": batch["y"]}
    operator = curvature.hessian(loss_fn, params, batch)
    ours = curvature.eigsh(operator, jax.tree.map(jnp.ones_like, params), 1, which="LM")
    assert bool(ours.converged.all())
    assert float(ours.eigenvalues[0]) == pytest.approx(theirs, rel=POWER_ITERATION)
