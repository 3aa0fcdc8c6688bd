"""Attacks on eight devices, three ways, against one device; prints what it finds as JSON.

Run by test_devices.py in a process of its own, for the number of devices is fixed when JAX starts.
"""

import json
import sys

import jax

from hessabs import attacks
from tests.attacks.cases import LOSS, make_batch, make_params
from tests.devices.ways import WAYS, collectives, largest_difference, same_bits

ATTACKS = {
    "fgsm": attacks.fgsm(0.1),
    "l2grad": attacks.l2grad(0.2),
    "bim": attacks.bim(0.1, steps=5, early_exit=False),
    "pgd": attacks.pgd(0.1, steps=5, random_start=False, early_exit=False),
    "apgd": attacks.apgd(0.1, steps=8, random_start=False, early_exit=False),
    "l2hess": attacks.l2hess(0.2),
    "trust_region": attacks.trust_region(radius=0.05, steps=10),
    "deepfool": attacks.deepfool(steps=5),
}


def main(names):
    params = make_params()
    batch = make_batch(params, n=32)
    results = {}
    for name in names:

        def perturb(params, batch, attack=ATTACKS[name]):
            return attack(LOSS, params, batch)["image"]

        want = jax.jit(perturb)(params, batch)
        for way, make in WAYS.items():
            try:
                run, lower = make(perturb, per_example=True)
                got = run(params, batch)
                results[f"{name}: {way}"] = {
                    "difference": largest_difference(got, want),
                    "moved": largest_difference(got, batch["image"]),
                    "same bits": same_bits(got, run(params, batch)),
                    "collectives": collectives(lower(params, batch)),
                }
            except Exception as error:
                results[f"{name}: {way}"] = f"{type(error).__name__}: {error}"[:800]
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:] or ATTACKS)
