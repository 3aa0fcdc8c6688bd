"""Fashion-MNIST with an MLP: networks trained robustly in each way, to be attacked in each way.

    python experiments/run.py robust_models --data_dir DIR
    python experiments/robust_models.py --data_dir DIR

The second command attacks what the first one trained, and measures its Hessian. A short schedule: 4 epochs of
batch 128, the learning rate decaying after 2 and 3. L-infinity perturbations are 0.02 in pixel values of
[0, 1], L2 perturbations 0.5. FGSM, FGSM-10, L2GRAD, FHSM and L2HESS are the models of Yao et al. (2018),
arXiv:1802.08241; ABSA grows to batch 512, the others stay at 128.
"""

SEEDS = (0, 1, 2)
BASE = {
    "dataset": "fashion_mnist",
    "model": "mlp",
    "method": "bl",
    "epochs": 4,
    "lr_decay_epochs": (2, 3),
    "epsilon": 0.02,
}

GRID = {
    "plain": {},
    "absa": {"method": "absa", "max_batch_size": 512, "patience": 1},
    "fgsm": {"robust": "pgd", "attack": "fgsm"},
    "fgsm_10": {"robust": "pgd", "attack": "bim"},
    "l2grad": {"robust": "pgd", "attack": "l2grad", "epsilon": 0.5},
    "fhsm": {"robust": "pgd", "attack": "fhsm", "attack_steps": 9},
    "l2hess": {"robust": "pgd", "attack": "l2hess", "attack_steps": 9, "epsilon": 0.5},
    "pgd": {"robust": "pgd"},
    "trades": {"robust": "trades"},
    "free": {"robust": "free"},
    "sam": {"robust": "sam"},
}
