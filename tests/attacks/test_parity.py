"""The same attacks in foolbox, on the same weights and 1,000 real images. Needs foolbox and torch."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hessabs import attacks, data, models
from hessabs.attacks import losses
from tests.attacks.cases import size_of

pytestmark = [pytest.mark.slow, pytest.mark.realdata, pytest.mark.filterwarnings("ignore")]
DATA_DIR = os.environ.get("HESSABS_DATA_DIR")
ONE_POINT = 0.01
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def problem():
    """An MLP trained for two epochs, its logits function, 1,000 test images, and the same in foolbox."""
    foolbox, torch = pytest.importorskip("foolbox"), pytest.importorskip("torch")
    if not DATA_DIR:
        pytest.skip("set HESSABS_DATA_DIR to a folder with a prepared fashion_mnist")
    dataset, model = data.load("fashion_mnist", data_dir=DATA_DIR), models.mlp()
    image = dataset.train["image"].astype(np.float32) / 255
    params, optimizer = model.init(KEY, image[:1])["params"], optax.adam(1e-3)

    def logits_fn(params, inputs):
        return model.apply({"params": params}, inputs)

    @jax.jit
    def step(params, state, x, y):
        loss_fn = losses.cross_entropy(logits_fn)
        updates, state = optimizer.update(jax.grad(loss_fn)(params, {"image": x, "label": y}), state)
        return optax.apply_updates(params, updates), state

    state, rng = optimizer.init(params), np.random.default_rng(0)
    for order in (rng.permutation(len(image))[:59904] for _ in range(2)):
        for part in order.reshape(-1, 128):
            params, state = step(params, state, image[part], dataset.train["label"][part])

    layers = [torch.nn.Flatten()]
    for i in range(3):
        kernel, bias = (np.array(params[f"Dense_{i}"][name]) for name in ("kernel", "bias"))
        layer = torch.nn.Linear(*kernel.shape)
        layer.weight.data, layer.bias.data = torch.tensor(kernel.T.copy()), torch.tensor(bias)
        layers += [layer, torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers[:-1]).eval()
    image = dataset.test["image"][:1000].astype(np.float32) / 255
    batch = {"image": jnp.asarray(image), "label": jnp.asarray(dataset.test["label"][:1000], jnp.int32)}
    peer = foolbox.PyTorchModel(network, bounds=(0, 1))
    tensors = torch.tensor(image), torch.tensor(np.array(batch["label"]), dtype=torch.long)
    return foolbox, peer, tensors, losses.cross_entropy(logits_fn), params, batch


def withstood(problem, attack, norm=None, epsilon=None):
    *_, loss_fn, params, batch = problem
    got = attack(loss_fn, params, batch, KEY)
    stands = ~np.asarray(losses.per_example(loss_fn, params, got, "image")[1])
    if norm is not None:
        stands |= size_of(got["image"] - batch["image"], norm) > epsilon
    return (stands & ~np.asarray(losses.per_example(loss_fn, params, batch, "image")[1])).mean()


def peer_sizes(got, image, norm):
    step = np.asarray(got, np.float64).reshape(len(got), -1) - np.asarray(image, np.float64).reshape(
        len(got), -1
    )
    return np.abs(step).max(1) if norm == "linf" else np.linalg.norm(step, axis=1)


def test_fgsm_is_the_same(problem):
    foolbox, peer, tensors, loss_fn, params, batch = problem
    want = foolbox.attacks.FGSM()(peer, *tensors, epsilons=0.05)[1].numpy()
    got = np.asarray(attacks.fgsm(0.05)(loss_fn, params, batch)["image"])
    # A sign may differ where the gradient is rounding error.
    assert (np.abs(got - want) > 1e-6).mean() < 1e-4


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.02), ("linf", 0.05), ("l2", 0.5)])
def test_pgd_is_as_strong(problem, norm, epsilon):
    foolbox, peer, tensors, *_ = problem
    factory = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    fell = factory(steps=40)(peer, *tensors, epsilons=epsilon)[2].numpy()
    ours = withstood(problem, attacks.pgd(epsilon, norm=norm, steps=40))
    assert ours <= 1 - fell.mean() + ONE_POINT


@pytest.mark.parametrize(("norm", "epsilon"), [("l2", 0.5), ("linf", 0.03)])
def test_deepfool_is_as_strong(problem, norm, epsilon):
    foolbox, peer, tensors, *_ = problem
    factory = foolbox.attacks.L2DeepFoolAttack if norm == "l2" else foolbox.attacks.LinfDeepFoolAttack
    fell = factory()(peer, *tensors, epsilons=[epsilon])[2][0].numpy()
    assert withstood(problem, attacks.deepfool(norm=norm), norm, epsilon) <= 1 - fell.mean() + ONE_POINT


def test_carlini_wagner_is_as_strong_and_its_perturbations_as_small(problem):
    foolbox, peer, tensors, loss_fn, params, batch = problem
    effort = {"binary_search_steps": 4, "steps": 100}
    theirs = foolbox.attacks.L2CarliniWagnerAttack(initial_const=0.1, **effort)
    _, (smallest,), (ever,) = theirs(peer, *tensors, epsilons=[None])
    attack = attacks.carlini_wagner(initial_weight=0.1, **effort)
    got = attack(loss_fn, params, batch, KEY)
    sizes = size_of(smallest.numpy() - np.asarray(batch["image"]), "l2")
    theirs_at_half = 1 - (ever.numpy() & (sizes <= 0.5)).mean()
    assert withstood(problem, lambda *_: got, "l2", 0.5) <= theirs_at_half + ONE_POINT
    both = np.asarray(losses.per_example(loss_fn, params, got, "image")[1]) & ever.numpy()
    both &= ~np.asarray(losses.per_example(loss_fn, params, batch, "image")[1])
    assert both.mean() > 0.8
    ours = size_of(np.asarray(got["image"]) - np.asarray(batch["image"]), "l2")
    assert ours[both].mean() <= 1.02 * sizes[both].mean()
