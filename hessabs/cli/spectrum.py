"""``hessabs spectrum``: the Hessian eigenvalues of a network that was trained."""

import pathlib
from collections.abc import Sequence

from absl import flags

from hessabs.cli.flags import config_flags, parse, read_config, refuse


def main(argv: Sequence[str]) -> int:
    """Run the command; the exit status is 0, or 2 for input that cannot be used."""
    from hessabs.training import files
    from hessabs.training.look import where
    from hessabs.training.look.spectrum import Options, spectrum, stem

    values = config_flags(where.Where, Options)
    try:
        if parse(values, "spectrum", argv):
            return 0
        options, place = read_config(Options, values), read_config(where.Where, values)
        task, params, model_state, _ = where.open_run(place)
        workdir, how = pathlib.Path(values.workdir), where.changed(place)
        with files.usable("workdir", workdir):
            files.refuse_links(workdir)
            record = spectrum(task, params, model_state, workdir, options, how)
    except (flags.Error, ValueError, OSError) as error:
        return refuse(error)
    print("matrix                 number   eigenvalue   residual")
    for row in record["eigenvalues"]:
        mark = "" if row["converged"] else "  (not converged)"
        numbers = f"{row['number']:6d} {row['eigenvalue']:12.6g} {row['residual']:10.1e}"
        print(f"{row['matrix']:22s} {numbers}{mark}")
    print(f"spectrum: {workdir / stem(options, how)}.json")
    return 0
