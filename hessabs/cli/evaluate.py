"""``hessabs evaluate``: loss and metrics of a network that was trained."""

from absl import flags

from hessabs.cli.flags import read_config
from hessabs.training.look import where
from hessabs.training.look.evaluate import Options, evaluate

SETTINGS = (where.Where, Options)


def main(values: flags.FlagValues) -> int:
    """Print each metric."""
    task, params, model_state, _ = where.open_run(read_config(where.Where, values))
    found = evaluate(task, params, model_state, **read_config(Options, values)._asdict())
    for name, value in found.items():
        print(f"{name:20s} {100 * value:.2f}%" if name.endswith("accuracy") else f"{name:20s} {value:.6g}")
    return 0
