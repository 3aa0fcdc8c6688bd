"""Attacks on several devices, three ways, against one device; prints what it finds as JSON.

Run by test_devices.py, with eight devices in a process of its own: their number is fixed when JAX starts.
"""

import json
import sys
import unittest.mock

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hessabs import attacks
from hessabs.attacks import rows
from tests.attacks.cases import LOSS, make_batch, make_params
from tests.devices.ways import WAYS, collectives, data_mesh, largest_difference, same_bits

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
COMPILED = {
    "pgd": attacks.pgd(0.1, steps=5, random_start=False, loop="device"),
    "trust_region": attacks.trust_region(radius=0.05, steps=10, loop="device"),
    "deepfool": attacks.deepfool(steps=5, loop="device"),
}


def outside_of_jit(attack, params, batch):
    """An attack with a compiled loop on a batch that is split over the devices, outside of jit."""
    programs, original = [], rows._compiled_loop

    def recorded(*args):
        assert args[-1].value is not None  # a mesh: each device asks for its own
        programs.append(original.trace(*args).lower())
        return original(*args)

    mesh = data_mesh()
    there = (
        jax.device_put(params, NamedSharding(mesh, P())),
        jax.device_put(batch, NamedSharding(mesh, P("data"))),
    )
    with unittest.mock.patch.object(rows, "_compiled_loop", recorded):
        got, again = (attack(LOSS, *there)["image"] for _ in range(2))
    return {
        "difference": largest_difference(got, attack(LOSS, params, batch)["image"]),
        "moved": largest_difference(got, batch["image"]),
        "same bits": same_bits(got, again),
        "collectives": [found for program in programs for found in collectives(program)],
        "loops": len(programs),
    }


def find(names):
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
        if name in COMPILED:
            results[f"{name}: outside of jit"] = outside_of_jit(COMPILED[name], params, batch)
    return results


if __name__ == "__main__":
    print(json.dumps(find(sys.argv[1:] or ATTACKS)))
