"""``hessabs spectrum``: the Hessian eigenvalues of a network that was trained."""

from absl import flags

from hessabs.cli.flags import read_config
from hessabs.training.look import where
from hessabs.training.look.spectrum import Options, spectrum, stem

SETTINGS = (where.Where, Options)


def main(values: flags.FlagValues) -> int:
    """Compute the spectrum, write it into the folder of the run and print the eigenvalues."""
    options, place = read_config(Options, values), read_config(where.Where, values)
    task, params, model_state, _ = where.open_run(place)
    how = where.changed(place)
    with where.writing(place) as workdir:
        record = spectrum(task, params, model_state, workdir, options, how)
    print("matrix                 number   eigenvalue   residual")
    for row in record["eigenvalues"]:
        mark = "" if row["converged"] else "  (not converged)"
        numbers = f"{row['number']:6d} {row['eigenvalue']:12.6g} {row['residual']:10.1e}"
        print(f"{row['matrix']:22s} {numbers}{mark}")
    print(f"spectrum: {workdir / stem(options, how)}.json")
    return 0
