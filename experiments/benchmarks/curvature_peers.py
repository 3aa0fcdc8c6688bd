"""How each peer finds the top eigenpairs of the networks of the curvature benchmark, rebuilt in PyTorch."""

import importlib.metadata
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PACKAGES = (
    "torch",
    "pyhessian",
    "hessian-eigenthings",
    "curvlinops-for-pytorch",
    "scipy",
    "matfree",
    "laplax",
)


def versions() -> dict[str, str]:
    """The peers that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def names(enough: int) -> tuple[str, ...]:
    """What the peers are called, in the order of ``Contest.tools``."""
    return (
        "PyHessian",
        "curvlinops + SciPy",
        "hessian-eigenthings, default",
        f"hessian-eigenthings, max_iter={enough} (told)",
        f"matfree, {enough} steps (told)",
        f"laplax, rank {enough} (told)",
    )


class Contest:
    """One network, one batch, and the peers that are installed.

    A class, since the PyTorch model, the data and the JAX operator belong together; nothing in it changes.
    """

    def __init__(self, name: str, loss_fn: Callable[..., Any], params: Any, batch: Any) -> None:
        self.name, self.loss_fn, self.params, self.batch = name, loss_fn, params, batch
        import torch

        torch.backends.cudnn.allow_tf32 = False
        self.torch = torch
        self.on_gpu = jax.default_backend() == "gpu"
        device = "cuda" if self.on_gpu else "cpu"
        self.model = _torch_model(name, params).to(device)
        images = torch.tensor(np.asarray(batch["image"]).transpose(0, 3, 1, 2).copy())
        labels = torch.tensor(np.asarray(batch["label"]).astype(np.int64))
        self.data = images.to(device), labels.to(device)
        self.criterion = torch.nn.CrossEntropyLoss()

    def torch_gradient(self) -> Any:
        """The gradient of the same loss in PyTorch."""
        loss = self.criterion(self.model(self.data[0]), self.data[1])
        self.torch.autograd.grad(loss, list(self.model.parameters()))
        if self.on_gpu:
            self.torch.cuda.synchronize()

    def tools(self, k: int, enough: int) -> dict[str, Callable[[], tuple[np.ndarray, Any]]]:
        """The peers by name; ``enough`` Lanczos steps suffice, for those that cannot tell."""
        runs = (
            lambda: self._pyhessian(k),
            lambda: self._curvlinops(k),
            lambda: self._eigenthings(k, None),
            lambda: self._eigenthings(k, enough),
            self._matfree(k, enough),
            self._laplax(k, enough),
        )
        return dict(zip(names(enough), runs, strict=True))

    def _pyhessian(self, k: int) -> tuple[np.ndarray, Any]:
        from pyhessian import hessian

        operator = hessian(self.model, self.criterion, data=self.data, cuda=self.on_gpu)
        values, vectors = operator.eigenvalues(top_n=k)
        flat = [np.concatenate([x.detach().cpu().numpy().ravel() for x in v]) for v in vectors]
        return np.array(values), self._trees(np.stack(flat))

    def _curvlinops(self, k: int) -> tuple[np.ndarray, Any]:
        import scipy.sparse.linalg
        from curvlinops import HessianLinearOperator

        operator = HessianLinearOperator(
            self.model,
            self.criterion,
            list(self.model.parameters()),
            [self.data],
            check_deterministic=False,
        )
        values, vectors = scipy.sparse.linalg.eigsh(operator.to_scipy(), k, which="LA", tol=1e-3)
        return values, self._trees(vectors.T)

    def _eigenthings(self, k: int, max_iter: int | None) -> tuple[np.ndarray, Any]:
        import hessian_eigenthings as he

        loss = he.supervised_loss(self.criterion)
        operator = he.HessianOperator(self.model, [self.data], loss)
        result = he.lanczos(operator, k=k, max_iter=max_iter, which="LA", seed=0, reorthogonalize=True)
        vectors = result.eigenvectors.detach().cpu().numpy()
        return result.eigenvalues.detach().cpu().numpy(), self._trees(vectors)

    def _matfree(self, k: int, steps: int) -> Callable[[], tuple[np.ndarray, Any]]:
        from matfree import decomp, eig

        find = eig.eigh_partial(decomp.tridiag_sym(steps))
        loss_fn = self.loss_fn

        def product(vector: Any, params: Any, batch: Any) -> Any:
            return jax.jvp(lambda p: jax.grad(loss_fn)(p, batch), (params,), (vector,))[1]

        @jax.jit
        def top(v0: Any, params: Any, batch: Any) -> Any:
            values, vectors = find(product, v0, params, batch)
            return values[-k:], jax.tree.map(lambda x: x[-k:], vectors)

        v0 = _start(self.params)
        return lambda: jax.block_until_ready(top(v0, self.params, self.batch))

    def _laplax(self, k: int, rank: int) -> Callable[[], tuple[np.ndarray, Any]]:
        from jax.flatten_util import ravel_pytree
        from laplax.curv.lanczos import lanczos_lowrank

        flat, unravel = ravel_pytree(self.params)
        loss_fn, batch = self.loss_fn, self.batch

        def product(vector: jax.Array) -> jax.Array:
            gradient = jax.grad(lambda p: loss_fn(unravel(p), batch))
            return jax.jvp(gradient, (flat,), (vector,))[1]

        v0 = ravel_pytree(_start(self.params))[0]

        def run() -> tuple[np.ndarray, Any]:
            terms = lanczos_lowrank(
                product, b=v0, layout=flat.size, rank=rank, mv_dtype=jnp.float32, calc_dtype=jnp.float32
            )
            order = np.argsort(-np.asarray(terms.S))[:k]
            return np.asarray(terms.S)[order], jax.vmap(unravel)(terms.U.T[order])

        return run

    def _trees(self, rows: np.ndarray) -> Any:
        """Rows in PyTorch's order of params (kernel, bias, layer by layer) as trees like the params."""
        trees, begin = [], 0
        rows = np.asarray(rows, np.float32)
        if rows.shape[0] > rows.shape[1]:
            rows = rows.T
        for layer in self.params:
            shape = layer["kernel"].shape
            size = int(np.prod(shape))
            kernel, begin = rows[:, begin : begin + size], begin + size
            bias, begin = rows[:, begin : begin + shape[-1]], begin + shape[-1]
            weights = jnp.asarray(_from_torch(self.name, kernel, shape))
            trees.append({"kernel": weights, "bias": jnp.asarray(bias)})
        return trees


def _start(params: Any) -> Any:
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(
        treedef, [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )


def _torch_model(name: str, params: Any) -> Any:
    import torch
    from torch import nn

    shapes = [layer["kernel"].shape for layer in params]
    if name == "mlp":
        layers: list[Any] = [nn.Flatten()]
        for shape in shapes:
            layers += [nn.Linear(*shape), nn.ReLU()]
        model = nn.Sequential(*layers[:-1])
    else:
        layers = []
        for shape in shapes[:-1]:
            layers += [nn.Conv2d(shape[2], shape[3], 5, padding=2), nn.ReLU(), nn.AvgPool2d(2)]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(*shapes[-1]))
    with torch.no_grad():
        for layer, like in zip([m for m in model if hasattr(m, "weight")], params, strict=True):
            layer.weight.copy_(torch.tensor(_to_torch(name, np.asarray(like["kernel"]))))
            layer.bias.copy_(torch.tensor(np.asarray(like["bias"])))
    return model.eval()


def _to_torch(name: str, kernel: np.ndarray) -> np.ndarray:
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1).copy()
    if name == "cnn":  # rows come from (7, 7, 32); PyTorch flattens (32, 7, 7)
        kernel = kernel.reshape(7, 7, 32, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
    return kernel.T.copy()


def _from_torch(name: str, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 4:
        return rows.reshape(-1, shape[3], shape[2], shape[0], shape[1]).transpose(0, 3, 4, 2, 1)
    rows = rows.reshape(-1, shape[1], shape[0]).transpose(0, 2, 1)
    if name == "cnn":
        rows = rows.reshape(-1, 32, 7, 7, shape[1]).transpose(0, 2, 3, 1, 4).reshape(-1, *shape)
    return rows
