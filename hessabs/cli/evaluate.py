"""``hessabs evaluate``: loss and metrics of a network that was trained."""

from collections.abc import Sequence

from absl import flags

from hessabs.cli.flags import config_flags, parse, read_config, refuse


def main(argv: Sequence[str]) -> int:
    """Run the command; the exit status is 0, or 2 for input that cannot be used."""
    from hessabs.training.look import where
    from hessabs.training.look.evaluate import Options, evaluate

    values = config_flags(where.Where, Options)
    try:
        if parse(values, "evaluate", argv):
            return 0
        options = read_config(Options, values)
        task, params, model_state, _ = where.open_run(read_config(where.Where, values))
        found = evaluate(task, params, model_state, **options._asdict())
    except (flags.Error, ValueError, OSError) as error:
        return refuse(error)
    for name, value in found.items():
        print(f"{name:20s} {100 * value:.2f}%" if name.endswith("accuracy") else f"{name:20s} {value:.6g}")
    return 0
