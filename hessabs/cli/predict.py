"""``hessabs predict``: the classes of images, and their probabilities, by a network that was trained."""

import pathlib
from typing import Annotated, NamedTuple

from absl import flags

from hessabs.cli.flags import read_config
from hessabs.terminal import printable
from hessabs.training import files
from hessabs.training.look import predict, where


class Options(NamedTuple):
    """How to predict."""

    output: Annotated[str | None, "file for the predictions too, .json (with all classes) or .csv"] = None
    resize: Annotated[int | None, "side of the images of the data, to bring others to it", "be at least 1"] = (
        None
    )


SETTINGS = (where.Where, Options)
WORDS = "IMAGE..."


def main(values: flags.FlagValues, *images: str) -> int:
    """Print the class of each image, and write the predictions into a file if one is named."""
    if not images:
        raise ValueError("name images, as in `hessabs predict --workdir W IMAGE...`, got none.")
    options = read_config(Options, values)
    output = None if options.output is None else pathlib.Path(options.output)
    predict.check_output(output)
    task, params, model_state, _ = where.open_run(read_config(where.Where, values))
    rows = predict.predict_files(task, params, model_state, images, resize=options.resize)
    if output is not None:
        with files.usable("output", output):
            predict.write(output, rows)
    names = [printable(row["image"]) for row in rows]
    width = max(5, *map(len, names))
    print(f"{'image':{width}s}  probability  class")
    for name, row in zip(names, rows, strict=True):
        print(f"{name:{width}s}  {row['probability']:11.4f}  {printable(row['class'])}")
    if output is not None:
        print(f"predictions: {output}")
    return 0
