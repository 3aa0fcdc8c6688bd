"""The picture of a plan: batch size and learning rate by epoch."""

from typing import Any

from hessabs.batch_size.bounds import Bounds


def draw_plans(bounds: Bounds, lr: float, title: str) -> Any:
    """Draw two plans, one line if they are the same, as a ``matplotlib.figure.Figure``; ``lr`` is the first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    sizes, rates = figure.subplots(2, 1, sharex=True)
    plans = {"earliest growth": bounds.fewest, "latest growth": bounds.most}
    if bounds.fewest.epochs == bounds.most.epochs:
        plans = {"planned": bounds.most}
    for name, plan in plans.items():
        label = f"{name}: {plan.updates} updates"
        epochs = [row.epoch for row in plan.epochs]
        sizes.step(epochs, [row.batch_size for row in plan.epochs], where="mid", label=label)
        rates.step(epochs, [lr * row.lr_scale for row in plan.epochs], where="mid")
    sizes.set(yscale="log", ylabel="examples per update", title=title)
    ticks = sorted({row.batch_size for plan in plans.values() for row in plan.epochs})
    sizes.set_yticks(ticks, [str(size) for size in ticks])
    sizes.set_yticks([], minor=True)
    rates.set(yscale="log", ylabel="learning rate", xlabel="epoch")
    sizes.legend()
    return figure
