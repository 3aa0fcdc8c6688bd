"""The networks against their definitions in PyTorch, on the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import models

torch = pytest.importorskip("torch", reason="the extra `peers` is not installed")
nn = torch.nn
F = torch.nn.functional

SAME = {"rtol": 1e-3, "atol": 1e-4}  # float32 on both sides, sums in another order, up to 20 layers


def make_c1():
    block = [nn.ReLU, lambda: nn.BatchNorm2d(64), lambda: nn.MaxPool2d(3, 2, 1)]
    layers = [nn.Conv2d(3, 64, 5, padding=2), *(f() for f in block)]
    layers += [nn.Conv2d(64, 64, 5, padding=2), *(f() for f in block)]
    layers += [nn.Flatten(), nn.Linear(4096, 384), nn.ReLU(), nn.Linear(384, 192), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(192, 10))


class Block(nn.Module):
    def __init__(self, before, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != width:
            shortcut = nn.Conv2d(before, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def make_resnet18():
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    before = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        layers += [Block(before, width, 2 if stage else 1), Block(width, width, 1)]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def make_alexnet_svhn():
    layers, before = [nn.Conv2d(3, 64, 11, 4, 5), nn.ReLU(), nn.MaxPool2d(2, 2)], 64
    for width, kernel, pooled in ((192, 5, True), (384, 3, False), (256, 3, False), (256, 3, True)):
        layers += [nn.Conv2d(before, width, kernel, padding=kernel // 2), nn.ReLU()]
        layers += [nn.MaxPool2d(2, 2)] if pooled else []
        before = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))


def randomize(net):
    """Move the statistics and the scales of batch norm from 0 and 1, where mistakes would not show."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.uniform_(-0.1, 0.1, generator=generator)


def converted(net, map_size):
    """Return flax variables; both sides number their layers in the order in which they are defined."""
    params, stats, counts = {}, {}, {}
    flattened = map_size is not None
    for module in net.modules():
        kind = {nn.Conv2d: "Conv", nn.BatchNorm2d: "BatchNorm", nn.Linear: "Dense"}.get(type(module))
        if kind is None:
            continue
        name = f"{kind}_{counts.setdefault(kind, 0)}"
        counts[kind] += 1
        weight = module.weight.detach().numpy()
        if kind == "Conv":
            params[name] = {"kernel": weight.transpose(2, 3, 1, 0)}
        elif kind == "BatchNorm":
            params[name] = {"scale": weight}
            stats[name] = {"mean": module.running_mean.numpy(), "var": module.running_var.numpy()}
        else:
            if flattened:  # PyTorch flattens channels first
                weight = weight.reshape(len(weight), -1, map_size, map_size).transpose(0, 2, 3, 1)
                weight = weight.reshape(len(weight), -1)
                flattened = False
            params[name] = {"kernel": weight.T}
        if module.bias is not None:
            params[name]["bias"] = module.bias.detach().numpy()
    return {"params": params, **({"batch_stats": stats} if stats else {})}


@pytest.mark.parametrize(
    ("make", "model", "size", "map_size"),
    [
        (make_c1, models.c1(), 32, 8),
        (make_alexnet_svhn, models.alexnet_svhn(), 32, 1),
        (make_resnet18, models.resnet18(10), 64, None),
    ],
    ids=["c1", "alexnet_svhn", "resnet18"],
)
def test_output_is_that_of_pytorch(make, model, size, map_size):
    torch.manual_seed(0)
    net = make().eval()
    randomize(net)
    x = np.random.default_rng(0).random((2, size, size, 3), dtype=np.float32)
    with torch.no_grad():
        expected = net(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    variables = converted(net, map_size)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(x))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), expected, **SAME)


@pytest.mark.parametrize("length", [1, 2, 6, 7, 13])
def test_adaptive_average_pool_is_that_of_pytorch(length):
    x = np.random.default_rng(0).random((1, length, length + 1, 2), dtype=np.float32)
    expected = F.adaptive_avg_pool2d(torch.tensor(x.transpose(0, 3, 1, 2)), 6).numpy().transpose(0, 2, 3, 1)
    got = models.adaptive_average_pool(jnp.asarray(x), 6)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
