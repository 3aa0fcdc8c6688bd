"""``hessabs evaluate``: loss and metrics of a network that was trained."""

from typing import Annotated, NamedTuple

from absl import flags

from hessabs.cli.flags import read_config
from hessabs.training.evaluation import evaluate
from hessabs.training.look import where


class Options(NamedTuple):
    """What to evaluate."""

    split: Annotated[str, "test, validation or train"] = "test"
    batch_size: Annotated[int, "examples in one pass of the network", "be at least 1"] = 1000


SETTINGS = (where.Where, Options)


def main(values: flags.FlagValues) -> int:
    """Print each metric."""
    options, place = read_config(Options, values), read_config(where.Where, values)
    task, params, model_state, _ = where.open_run(place)
    found = evaluate(task, params, model_state, **options._asdict())
    for name, value in found.items():
        print(f"{name:20s} {100 * value:.2f}%" if name.endswith("accuracy") else f"{name:20s} {value:.6g}")
    return 0
