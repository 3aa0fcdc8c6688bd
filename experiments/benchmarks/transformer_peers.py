"""The character transformer in PyTorch, with the weights of ours, and what the peers do with it."""

import importlib.metadata
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

PACKAGES = ("torch", "curvlinops-for-pytorch", "hessian-eigenthings", "scipy")


def versions() -> str:
    """Say which peers are installed."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)


def runs(problem: Any, arrays: Any) -> tuple[dict[str, Callable[[], Any]], Callable[[Any], Any]]:
    """Make the functions of the peers by name, and what makes a tree like the params of an answer."""
    import hessian_eigenthings as he
    import scipy.sparse.linalg
    import torch
    from curvlinops import GGNLinearOperator, HessianLinearOperator

    params, batch, vector = arrays
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _model(problem)
    places = _load(model, params)
    model.to(device)
    data = [(torch.tensor(batch["x"]).long().to(device), torch.tensor(batch["y"]).long().to(device))]

    def criterion(logits: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    class Loss(torch.nn.CrossEntropyLoss):
        def forward(self, logits: Any, labels: Any) -> Any:
            return criterion(logits, labels)

    weights = dict(model.named_parameters())
    flat = torch.cat([_to_torch(vector, path, turned).flatten() for path, turned in places.values()]).to(device)
    hessian = HessianLinearOperator(model, Loss(), list(weights.values()), data, check_deterministic=False)
    eigenthings = he.HessianOperator(model, data, he.supervised_loss(criterion))

    def read(row: Any) -> Any:
        """Take a row in PyTorch's order apart, as a tree like the params."""
        if not isinstance(row, torch.Tensor):
            return row
        row = row.detach().cpu()
        out, begin = jax.tree.map(np.zeros_like, params), 0
        for name, (path, turned) in places.items():
            part = row[begin : begin + weights[name].numel()].numpy().reshape(weights[name].shape)
            begin += weights[name].numel()
            _leaf(out, path)[...] = part.T if turned else part
        return out

    def gradient() -> None:
        torch.autograd.grad(criterion(model(data[0][0]), data[0][1]), list(weights.values()))

    found: dict[str, Callable[[], Any]] = {
        "gradient, PyTorch": gradient,
        "curvlinops, Hessian": lambda: hessian @ flat,
        "hessian-eigenthings, Hessian": lambda: eigenthings.matvec(flat),
    }

    class Flat(torch.nn.Module):
        """Tokens as rows of a batch, as the Gauss-Newton matrix of a cross-entropy wants them."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Any) -> Any:
            return self.inner(x).flatten(0, 1)

    rows = [(data[0][0], data[0][1].flatten())]
    ggn = GGNLinearOperator(
        Flat(), torch.nn.CrossEntropyLoss(), list(weights.values()), rows, check_deterministic=False,
        num_data=len(rows[0][1]), batch_size_fn=lambda x: x.numel(),
    )  # fmt: skip
    found["curvlinops, GGN"] = lambda: ggn @ flat

    def scipy_top() -> Any:
        values, _ = scipy.sparse.linalg.eigsh(hessian.to_scipy(), 5, which="LA", tol=1e-3)
        return {"values": values[::-1].copy()}

    def eigenthings_top() -> Any:
        found = he.lanczos(eigenthings, k=5, which="LA", seed=0, reorthogonalize=True)
        return {"values": np.sort(found.eigenvalues.detach().cpu().numpy())[::-1].copy()}

    found["top 5, curvlinops + SciPy"] = scipy_top
    found["top 5, hessian-eigenthings"] = eigenthings_top
    return {name: _finished(function) for name, function in found.items()}, read


def _finished(function: Callable[[], Any]) -> Callable[[], Any]:
    """Make a function that returns when its answer is there: PyTorch's GPU works behind its calls."""
    import torch

    def run() -> Any:
        answer = function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return answer

    return run


def _model(problem: Any) -> Any:
    import torch
    from torch import nn

    class Layer(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.first, self.second = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
            self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, h: Any) -> Any:
            n, length, width = h.shape
            parts = self.qkv(self.first(h)).view(n, length, 3, self.heads, width // self.heads)
            query, key, value = (parts[:, :, i].transpose(1, 2) for i in range(3))
            scores = query @ key.transpose(-1, -2) * (width // self.heads) ** -0.5
            unseen = torch.ones(length, length, dtype=torch.bool, device=h.device).triu(1)
            shares = scores.masked_fill(unseen, torch.finfo(scores.dtype).min).softmax(-1)
            h = h + self.out((shares @ value).transpose(1, 2).reshape(n, length, width))
            return h + self.down(nn.functional.gelu(self.up(self.second(h)), approximate="tanh"))

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Parameter(torch.zeros(problem.vocabulary, problem.width))
            self.places = nn.Parameter(torch.zeros(problem.length, problem.width))
            self.layers = nn.ModuleList(Layer(problem.width, problem.heads) for _ in range(problem.layers))
            self.norm = nn.LayerNorm(problem.width, eps=1e-6)

        def forward(self, x: Any) -> Any:
            h = nn.functional.embedding(x, self.embed) + self.places
            for layer in self.layers:
                h = layer(h)
            return self.norm(h) @ self.embed.T

    return Transformer()


def _load(model: Any, params: Any) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Copy our weights into a model; returns where each lies in ours, and whether it is transposed there."""
    import torch

    places: dict[str, tuple[tuple[str, ...], bool]] = {}
    for name, weight in model.named_parameters():
        *owner, kind = name.split(".")
        if name in ("embed", "places"):
            places[name] = (("embed", "embedding") if name == "embed" else ("position_embed",)), False
        else:
            layer = () if owner[0] == "norm" else (f"_Layer_{owner[1]}",)
            norm = {"first": "LayerNorm_0", "second": "LayerNorm_1", "norm": "LayerNorm_0"}.get(owner[-1])
            kind = "bias" if kind == "bias" else "scale" if norm else "kernel"
            places[name] = (*layer, norm or owner[-1], kind), kind == "kernel"
        with torch.no_grad():
            weight.copy_(_to_torch(params, *places[name]))
    return places


def _to_torch(tree: Any, path: tuple[str, ...], turned: bool) -> Any:
    import torch

    leaf = np.array(_leaf(tree, path))
    return torch.tensor(leaf.T.copy() if turned else leaf)


def _leaf(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree
