"""``hessabs spectrum``: the Hessian eigenvalues of a network that was trained."""

import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from hessabs.cli.flags import config_flags, parse, refuse


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
      argv: Its flags.

    Returns:
      The exit status: 0, or 2 for input that cannot be used.
    """
    from hessabs.training import metrics
    from hessabs.training.analysis.spectrum import SPECTRUM, Options, spectrum

    values = config_flags(Options)
    flags.DEFINE_string("workdir", None, "folder of a finished run; the results go there", flag_values=values)
    try:
        if parse(values, "spectrum", argv):
            return 0
        if values.workdir is None:
            raise ValueError("`workdir` is required: name the folder of a finished run with --workdir.")
        workdir = pathlib.Path(values.workdir)
        fields: dict[str, Any] = {name: values[name].value for name in Options._fields}
        with metrics.usable("workdir", workdir):
            record = spectrum(workdir, Options(**fields))
    except (flags.Error, ValueError, OSError) as error:
        return refuse(error)
    print("matrix                 number   eigenvalue   residual")
    for row in record["eigenvalues"]:
        mark = "" if row["converged"] else "  (not converged)"
        numbers = f"{row['number']:6d} {row['eigenvalue']:12.6g} {row['residual']:10.1e}"
        print(f"{row['matrix']:22s} {numbers}{mark}")
    print(f"spectrum: {workdir / SPECTRUM}")
    return 0
