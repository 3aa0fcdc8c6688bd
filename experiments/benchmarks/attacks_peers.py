"""The peers of ``attacks.py``, in a process without JAX: weights and images from a file, times to stdout.

python experiments/benchmarks/attacks_peers.py PROBLEM.npz SETTING_AS_JSON
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import foolbox
import numpy as np
import torch
import torchattacks


def main(problem: str, setting: dict[str, Any]) -> None:
    """Time the peers and print one line of JSON."""
    with np.load(problem, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    device = setting["device"]
    network = to_torch(setting["network"], arrays).to(device)
    # (N, H, W, C) to (N, C, H, W)
    image = torch.tensor(arrays["image"]).permute(0, 3, 1, 2).contiguous().to(device)
    tensors = image, torch.tensor(arrays["label"], dtype=torch.long).to(device)
    epsilon, steps, restarts = (setting[name] for name in ("epsilon", "steps", "restarts"))
    peer = foolbox.PyTorchModel(network, bounds=(0, 1), device=device)
    repeated = foolbox.attacks.LinfPGD(steps=steps, abs_stepsize=setting["step_size"]).repeat(restarts)
    single = torchattacks.PGD(network, eps=epsilon, alpha=setting["step_size"], steps=steps)
    multi = torchattacks.MultiAttack([single] * restarts)
    automatic = torchattacks.AutoAttack(network, norm="Linf", eps=epsilon, version="standard", n_classes=10)
    passes = 0  # of single images through the network

    def count(module: torch.nn.Module, arguments: Any) -> None:
        nonlocal passes
        passes += len(arguments[0])

    network.register_forward_pre_hook(count)

    def standing(got: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            stands: np.ndarray = (network(got).argmax(1) == tensors[1]).cpu().numpy()
        return stands

    runs: dict[str, Callable[[], float]] = {
        "foolbox": lambda: float(standing(repeated(peer, *tensors, epsilons=epsilon)[1]).mean()),
        "torchattacks": lambda: float(
            np.all([standing(single(*tensors)) for _ in range(restarts)], axis=0).mean()
        ),
        "multiattack": lambda: float(standing(multi(*tensors)).mean()),
        "autoattack": lambda: float(standing(automatic(*tensors)).mean()),
    }
    versions = dict.fromkeys(runs, f"torchattacks {torchattacks.__version__}")
    versions["foolbox"] = f"foolbox {foolbox.__version__}"
    found = {}
    for who in setting["peers"]:
        timings, accuracy, passes = [], 0.0, 0
        for _ in range(setting["rounds"]):
            start, cpu = time.perf_counter(), time.process_time()
            accuracy = runs[who]()
            timings.append((time.perf_counter() - start, time.process_time() - cpu))
        found[who] = {
            "seconds": [wall for wall, _ in timings],
            "cpu": [cpu for _, cpu in timings],
            "accuracy": accuracy,
            "passes": passes / setting["rounds"],
            "version": f"{versions[who]}, torch {torch.__version__}",
            "load": os.getloadavg()[0],
        }
    print(json.dumps(found))


def to_torch(name: str, arrays: dict[str, np.ndarray]) -> torch.nn.Module:
    """Make the same network in PyTorch."""

    def dense(key: str, rows: np.ndarray | None = None) -> torch.nn.Linear:
        kernel = arrays[f"{key}/kernel"]
        kernel = kernel if rows is None else kernel[rows]
        layer = torch.nn.Linear(*kernel.shape)
        layer.weight.data = torch.tensor(kernel.T.copy())
        layer.bias.data = torch.tensor(arrays[f"{key}/bias"])
        return layer

    def convolution(key: str) -> torch.nn.Conv2d:
        kernel = arrays[f"{key}/kernel"]
        layer = torch.nn.Conv2d(kernel.shape[2], kernel.shape[3], 5, padding=2)
        layer.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
        layer.bias.data = torch.tensor(arrays[f"{key}/bias"])
        return layer

    relu, flatten = torch.nn.ReLU(), torch.nn.Flatten()
    if name == "mlp":
        layers = [flatten, dense("Dense_0"), relu, dense("Dense_1"), relu, dense("Dense_2")]
    else:
        pool = torch.nn.MaxPool2d(2)
        # Flattening (C, H, W) there, (H, W, C) here.
        rows = np.arange(7 * 7 * 32).reshape(7, 7, 32).transpose(2, 0, 1).ravel()
        layers = [convolution("Conv_0"), relu, pool, convolution("Conv_1"), relu, pool]
        # flax numbers layers as they are made: the last one is written first.
        layers += [flatten, dense("Dense_1", rows), relu, dense("Dense_0")]
    return torch.nn.Sequential(*layers).eval()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
