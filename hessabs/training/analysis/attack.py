"""A trained run under attack: what ``hessabs attack`` computes and writes.

Files in the folder of the run: ``STEM.json`` (all numbers), ``STEM.csv`` (a line for each attack and epsilon),
``STEM.png`` (accuracy against epsilon), ``STEM_sheet.png`` (images). STEM names the attacks, the norm and, by a
digest, all other options: other options leave an earlier table alone. It begins with ``attack``, or with
``transfer`` for examples made on another run. The folder ``attacks`` keeps the result of each attack, epsilon
and chunk of images: an evaluation that was interrupted, or is repeated with more attacks, goes on from there.
"""

import csv
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, get_args

from hessabs.attacks import misleading, outcomes
from hessabs.attacks.norms import Norm, check_norm
from hessabs.attacks.outcomes import Clean, Evaluation, Outcome
from hessabs.training import metrics
from hessabs.training.analysis import attack_chunks, finished
from hessabs.training.analysis.attack_menu import NAMES, is_black_box, is_minimal, make
from hessabs.training.analysis.attack_pictures import Shown, draw_curve, draw_sheet
from hessabs.training.analysis.trained import Trained, load_trained
from hessabs.training.fields import number
from hessabs.training.progress import Progress

_COLUMNS = (
    "attack",
    "epsilon",
    "accuracy",
    "mean_relative",
    "max_relative",
    "seconds_per_image",
    "seconds_compile",
)
_SUMS = ("seconds", "seconds_compile")
_STEM_LENGTH = 60  # of the names in a file name


class Options(NamedTuple):
    """What to compute; one field, one flag of ``hessabs attack``."""

    attack: Annotated[str, f"attacks, comma-separated: {', '.join(NAMES)}"] = "pgd"
    epsilon: Annotated[str, "radii in pixel values of [0, 1], comma-separated; 8/255 is one, too"] = "0.01,0.02"
    norm: Annotated[str, f"of epsilon: {', '.join(get_args(Norm))}; not every attack has all"] = "linf"
    steps: Annotated[int, "gradient steps of iterated attacks"] = 40
    restarts: Annotated[int, "random starts of pgd, adam_pgd and apgd"] = 1
    queries: Annotated[int, "evaluations of each image by the square attack"] = 1000
    num_examples: Annotated[int, "use only so many test images; 0 for all"] = 0
    batch_size: Annotated[int, "images attacked at once; a finished batch is kept"] = 1000
    source: Annotated[str | None, "folder of another finished run to make the examples on (transfer)"] = None
    data_dir: Annotated[str | None, "folder of prepared TFDS data sets; default: that of the run"] = None
    seed: Annotated[int, "seed of random starts"] = 0
    keep_fallen: Annotated[
        bool, "count an image that fell at a smaller epsilon as fallen at the larger ones"
    ] = True


def attack(workdir: pathlib.Path, options: Options) -> dict[str, Any]:
    """Attack the network that a run left, and write what it withstands into its folder.

    Args:
      workdir: The folder of a finished run.
      options: What to compute.

    Returns:
      What the file of numbers holds.

    Raises:
      FileNotFoundError: If a folder holds no finished run.
      ValueError: If an option is out of range, the two runs do not fit, or the data is not on disk.
    """
    names, epsilons = _check(options)
    trained = load_trained(workdir, options.data_dir)
    network = source = attack_chunks.network(trained)
    if options.source is not None:
        other = load_trained(pathlib.Path(options.source), options.data_dir)
        _check_fit(trained, other)
        source = attack_chunks.network(other)
    task = attack_chunks.Task(workdir / metrics.ATTACKS, network, source, options)
    chunks = attack_chunks.chunks(trained.dataset.test, options)
    seen_clean = attack_chunks.join([attack_chunks.clean(task, start, batch) for start, batch in chunks])
    clean = Clean(*(seen_clean[name] for name in Clean._fields))
    misled = misleading.Misleading(*(seen_clean[name] for name in misleading.Misleading._fields))
    right = clean.right

    results: dict[tuple[str, float], Outcome] = {}
    shown = None
    with Progress(len(right) * len(names) * len(epsilons)) as bar:
        for number, epsilon in enumerate(epsilons):
            for place, name in enumerate(names):
                parts = []
                for start, batch in chunks:
                    parts.append(attack_chunks.attacked(task, name, epsilon, start, batch))
                    seen = (number * len(names) + place) * len(right) + start + len(batch["label"])
                    bar.show(seen, attack=name, epsilon=epsilon)
                shown = (
                    attack_chunks.shown(f"{name}, epsilon {epsilon:g}", chunks[0][1], parts[0], epsilon)
                    or shown
                )
                whole = attack_chunks.join(parts)
                arrays: dict[str, Any] = {
                    field: float(whole[field].sum()) if field in _SUMS else whole[field]
                    for field in Outcome._fields
                }
                results[name, epsilon] = Outcome(**arrays)
    rows = outcomes.table(clean, results, keep_fallen=options.keep_fallen)
    minimal, black_box = (set(filter(belongs, names)) for belongs in (is_minimal, is_black_box))
    found = misleading.of_results(rows, results, clean, minimal=minimal, black_box=black_box)
    record = {
        **{name: value for name, value in options._asdict().items() if name != "data_dir"},
        "images": len(right),
        "rows": [{name: getattr(row, name) for name in _COLUMNS} for row in rows],
        "warnings": [*misled.messages(right), *found],
    }
    _write(workdir / stem(options), record, rows, shown)
    return record


def stem(options: Options) -> str:
    """Return the name of the files that are written, without what follows the point.

    Args:
      options: What was computed.

    Returns:
      A name that other options do not have.

    Example:
      >>> stem(Options(attack="fgsm,pgd"))  # doctest: +ELLIPSIS
      'attack-fgsm+pgd-linf-...'
      >>> stem(Options(steps=10)) == stem(Options(steps=40))
      False
    """
    kind = "attack" if options.source is None else "transfer"
    names = "+".join(name.strip() for name in options.attack.split(","))
    epsilons = [number(part) for part in options.epsilon.split(",")]
    fields = {**options._asdict(), "attack": names, "epsilon": epsilons, "data_dir": None}
    return f"{kind}-{names[:_STEM_LENGTH]}-{options.norm}-{finished.identify(**fields)[:6]}"


def _check(options: Options) -> tuple[list[str], list[float]]:
    names = [name.strip() for name in options.attack.split(",")]
    try:
        epsilons = [number(part) for part in options.epsilon.split(",")]
    except ValueError:
        raise ValueError(
            "`epsilon` must be numbers separated by commas, or fractions such as 8/255, got "
            f"{options.epsilon!r}."
        ) from None
    check_norm(options.norm)
    for name in names:
        for epsilon in epsilons:
            make(name, epsilon, options)
    if len(set(names)) < len(names) or len(set(epsilons)) < len(epsilons):
        raise ValueError(f"Name each attack and each epsilon once, got {options.attack} and {options.epsilon}.")
    if options.num_examples < 0 or options.batch_size < 1:
        raise ValueError(
            "`num_examples` must be at least 0 and `batch_size` at least 1, got "
            f"{options.num_examples} and {options.batch_size}."
        )
    return names, epsilons


def _check_fit(trained: Trained, other: Trained) -> None:
    def shape(run: Trained) -> tuple[Any, ...]:
        return (*run.dataset.test["image"].shape[1:], run.dataset.num_classes)

    if shape(trained) != shape(other):
        raise ValueError(
            "`source` must be a run on images of the same shape and classes, got (height, width, channels, "
            f"classes) {shape(other)}, and {shape(trained)} in workdir."
        )


def _write(path: pathlib.Path, record: dict[str, Any], rows: Sequence[Evaluation], shown: Shown | None) -> None:
    metrics.write_json(path.with_name(f"{path.name}.json"), record)
    with path.with_name(f"{path.name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=_COLUMNS)
        writer.writeheader()
        writer.writerows(record["rows"])
    title = f"accuracy on {record['images']} test images, {record['norm']}"
    draw_curve(path.with_name(f"{path.name}.png"), rows, title)
    if shown is not None:
        draw_sheet(path.with_name(f"{path.name}_sheet.png"), shown)
