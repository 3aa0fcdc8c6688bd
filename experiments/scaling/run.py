"""ImageNet ResNet-18 on 8 to 1,024 devices, on paper: how long each method trains, and where growth pays.

``python -m experiments.scaling.run`` writes ``scaling.png`` and ``table.md`` beside this file. The updates
are the planner's, the seconds those of the model below; nothing is measured here.

The time of an update of B examples on D devices is

    T_comp = t0 + t * ceil(B / D) * (1 + adversarial fraction)
    T_comm = 2 (D - 1) / D * bytes / bandwidth + 2 (D - 1) * latency      (ring all-reduce of the gradient)
    T_Hess = products * (2 * (t0 + t * ceil(H / D)) + T_comm)             (power iteration on H examples)

and a run takes the sum over its updates and measurements.
"""

import math
import pathlib
from typing import NamedTuple

from absl import app
from matplotlib.figure import Figure

from experiments import provenance
from hessabs.batch_size import Plan
from hessabs.batch_size import methods as rules

HERE = pathlib.Path(__file__).parent
DEVICES = (8, 16, 32, 64, 128, 256, 512, 1024)
NUM_EXAMPLES, EPOCHS, BATCH = 1_281_167, 90, 256
LARGEST = 16_384  # FB, ABS, ABSA; GG grows as far as its schedule says, 256,000
HESSIAN_BATCH, PRODUCTS = 512, 10  # of a measurement
BYTES = 4 * 11_689_512  # float32 params of ResNet-18


class Machine(NamedTuple):
    """What a device and its network are assumed to do."""

    name: str
    seconds_per_example: float  # forward and backward pass on one device
    overhead: float  # seconds that an update takes on a device however few its examples
    bandwidth: float  # bytes a second of each link of the ring
    latency: float  # seconds per message


# The slides' step (T_comp 0.022 s, T_comm 0.015 s at batch 256), read as that of 8 devices of 32 examples.
SLIDES = Machine("as in the slides", 0.022 / 32, 0.002, 2 * 7 / 8 * BYTES / 0.015, 5e-6)
FAST = Machine("10 times the device, 100 GB/s", 0.022 / 320, 0.002, 100e9, 5e-6)


class Method(NamedTuple):
    """A method, planned."""

    name: str
    plan: Plan
    adversarial: bool


def methods() -> list[Method]:
    """Plan the methods; a rule that measures has an earliest and a latest growth."""
    run = rules.PlanSettings(
        epochs=EPOCHS,
        batch_size=BATCH,
        lr_decay=0.1,
        lr_decay_epochs=(30, 60, 80),
        remainder="fill",
    )
    result = []
    for name, largest in (("BL", None), ("FB", LARGEST), ("GG", 256_000), ("ABS", LARGEST), ("ABSA", LARGEST)):
        own = {} if largest is None else {"max_batch_size": largest}
        bounds = rules.make_plans(run, rules.choose(name.lower(), own), NUM_EXAMPLES)
        plans = {"": bounds.fewest}
        if bounds.fewest.epochs != bounds.most.epochs:
            plans = {", earliest": bounds.fewest, ", latest": bounds.most}
        result += [Method(name + suffix, plan, name == "ABSA") for suffix, plan in plans.items()]
    return result


def communicate(machine: Machine, devices: int) -> float:
    """Return the seconds of an all-reduce of the gradient."""
    ring = 2 * (devices - 1)
    return ring / devices * BYTES / machine.bandwidth + ring * machine.latency


def compute(machine: Machine, devices: int, examples: int, passes: float = 1.0) -> float:
    """Return the seconds of the gradient of so many examples, all devices together."""
    return machine.overhead + machine.seconds_per_example * math.ceil(examples / devices) * passes


def seconds(method: Method, machine: Machine, devices: int) -> float:
    """Return the seconds of a run."""
    comm = communicate(machine, devices)
    total, updates, batch, fraction = 0.0, 0.0, method.plan.epochs[0].batch_size, 0.0
    if method.adversarial:
        fraction = method.plan.epochs[0].adversarial_fraction
    for epoch in method.plan.epochs:
        # A row says how things stand at the end of its epoch; what it decided holds from the next one on.
        total += (epoch.updates - updates) * (compute(machine, devices, batch, 1 + fraction) + comm)
        updates, batch = epoch.updates, epoch.batch_size
        fraction = epoch.adversarial_fraction if method.adversarial else 0.0
    product = 2 * compute(machine, devices, HESSIAN_BATCH) + comm
    return total + method.plan.measurements * PRODUCTS * product


def table(machine: Machine, planned: list[Method]) -> list[str]:
    """Return the hours of every method, and what ABSA gains."""
    by_name = {method.name: [seconds(method, machine, d) for d in DEVICES] for method in planned}
    lines = [
        "| devices | " + " | ".join(by_name) + " | ABSA against BL | against GG | efficiency of ABSA |",
        "|---" * (len(by_name) + 4) + "|",
    ]
    late = by_name["ABSA, latest"]
    for i, devices in enumerate(DEVICES):
        hours = " | ".join(f"{values[i] / 3600:.2f}" for values in by_name.values())
        efficiency = late[0] * DEVICES[0] / (late[i] * devices)
        lines.append(
            f"| {devices} | {hours} | {by_name['BL'][i] / late[i]:.2f} | {by_name['GG'][i] / late[i]:.2f} | "
            f"{100 * efficiency:.0f} % |"
        )
    return lines


def draw(machines: tuple[Machine, ...], planned: list[Method]) -> Figure:
    """Draw the hours of a run by devices."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, machine in zip(figure.subplots(1, len(machines)), machines, strict=True):
        for method in planned:
            style = ":" if "latest" in method.name else "-"
            color = {"BL": "k", "FB": "tab:gray", "GG": "tab:blue", "ABS": "tab:green", "ABSA": "tab:red"}
            hours = [seconds(method, machine, devices) / 3600 for devices in DEVICES]
            axes.loglog(DEVICES, hours, style, color=color[method.name.partition(",")[0]], label=method.name)
        axes.set(title=machine.name, xlabel="devices", ylabel="hours")
        axes.set_xticks(DEVICES, [str(devices) for devices in DEVICES])
        axes.minorticks_off()
    figure.axes[0].legend(fontsize=8)
    return figure


def main(argv: list[str]) -> None:
    """Write the picture and the tables."""
    del argv
    planned, machines = methods(), (SLIDES, FAST)
    lines = [f"`python -m experiments.scaling.run`, commit {provenance.commit()}; hours of a run.", ""]
    updates = ", ".join(f"{method.name} {method.plan.updates:,}" for method in planned)
    lines += [f"Updates: {updates}.", ""]
    for machine in machines:
        lines += [f"## {machine.name}", "", *table(machine, planned), ""]
    (HERE / "table.md").write_text("\n".join(lines))
    draw(machines, planned).savefig(HERE / "scaling.png", dpi=110)
    print("\n".join(lines))


if __name__ == "__main__":
    app.run(main)
