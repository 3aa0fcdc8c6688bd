"""Train a fixed batch size and ABSA on the embedded digits, side by side: what `make demo` runs.

    python examples/demo.py --workdir runs/demo

Prints a table of both and the path of a picture.
"""

import pathlib
from collections.abc import Sequence

from absl import app, flags, logging

from hessabs import training
from hessabs.training.curves import draw_curves
from hessabs.training.look.results import summary_table

_WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "folder for the results of both runs")
_EPOCHS = flags.DEFINE_integer("epochs", 60, "passes over the training set")


def main(argv: Sequence[str]) -> None:
    """Train both and compare."""
    del argv
    logging.set_verbosity(logging.WARNING)
    workdir = pathlib.Path(_WORKDIR.value)
    epochs = _EPOCHS.value
    settings = {
        "dataset": "digits",
        "batch_size": 32,
        "epochs": epochs,
        "lr": 0.05,
        "lr_decay_epochs": tuple(sorted({max(1, epochs // 3), max(1, 2 * epochs // 3)})),
        "fgsm_epsilon": 0.05,
    }
    growth = {"max_batch_size": 512, "patience": 4, "epsilon": 0.05}
    summaries, curves = {}, {}
    for name, method, own in (("fixed batch (BL)", "bl", {}), ("ABSA", "absa", growth)):
        print(f"training {name} on digits, {epochs} epochs ...", flush=True)
        parts = training.assemble({**settings, "method": method, **own})
        task, optimizer, rule = parts.task, parts.optimizer, parts.rule
        own_dir = workdir / method
        result = training.fit(task, optimizer, rule, **parts.options, workdir=own_dir, overwrite=True)
        summaries[name], curves[name] = result.summary, result.records
    draw_curves(workdir / "curves.png", curves)
    print(f"\n{summary_table(summaries)}\n")
    ratio = summaries["fixed batch (BL)"]["updates"] / summaries["ABSA"]["updates"]
    print(f"ABSA made {ratio:.1f} times fewer updates; FGSM perturbs each pixel by at most 0.05.")
    print(f"picture: {workdir / 'curves.png'}")


if __name__ == "__main__":
    app.run(main)
