"""``hessabs attack``: the accuracy of a network that was trained under attacks, by epsilon."""

import sys

from absl import flags

from hessabs.checks import refuse_unread
from hessabs.cli.flags import given, read_config
from hessabs.training.look import where
from hessabs.training.look.attack import Options, attack, readers, stem

SETTINGS = (where.Where, Options)


def main(values: flags.FlagValues) -> int:
    """Attack the network, write what it withstands into the folder of the run and print the table."""
    options, place = read_config(Options, values), read_config(where.Where, values)
    counts = {count: readers(count) for count in ("steps", "restarts", "queries")}
    refuse_unread(given(Options, values), counts, attack=options.attack)
    task, params, model_state, _ = where.open_run(place)
    source = None
    if options.source is not None:
        source = where.open_run(where.Where(options.source, data_dir=place.data_dir, ema=place.ema))[:3]
    how = where.changed(place)
    with where.writing(place) as workdir:
        record = attack(task, params, model_state, workdir, options, source, how)
    print("attack           epsilon   accuracy   mean relative   max relative   ms per image   compiling s")
    for row in record["rows"]:
        numbers = f"{row['epsilon']:9.4g} {100 * row['accuracy']:9.2f}% {row['mean_relative']:15.4g}"
        each = f"{'<' * row['first_run']}{1000 * row['seconds_per_image']:.4g}"
        times = f"{each:>14s} {row['seconds_compile']:13.1f}"
        print(f"{row['attack']:14s} {numbers} {row['max_relative']:14.4g} {times}")
    for message in record["warnings"]:
        print(f"warning: {message}", file=sys.stderr)
    print(f"attack: {workdir / stem(options, how)}.json")
    return 0
