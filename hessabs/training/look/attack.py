"""A trained network under attack: what ``hessabs attack`` computes and writes.

Files in the folder of the run: ``STEM.json`` (all numbers), ``STEM.csv`` (a line for each attack and epsilon),
``STEM.png`` (accuracy against epsilon), ``STEM_sheet.png`` (images). STEM names the attacks, the norm and, by a
digest, all other options: other options leave an earlier table alone. It begins with ``attack``, or with
``transfer`` for examples made on another run. The result of each attack, epsilon and chunk of examples is kept
(``look/cache.py``): an evaluation that was interrupted, or is repeated with more attacks, goes on from there.
"""

import csv
import pathlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple, get_args

import jax
import numpy as np

from hessabs.attacks import losses, misleading, outcomes
from hessabs.attacks.checks import check_one_of
from hessabs.attacks.evaluate import report
from hessabs.attacks.misleading import Misleading
from hessabs.attacks.norms import Norm
from hessabs.attacks.outcomes import CLEAN, Clean, Evaluation, Outcome
from hessabs.inputs import get_inputs
from hessabs.training import files
from hessabs.training.fields import number
from hessabs.training.look import cache, pictures
from hessabs.training.look.batches import read
from hessabs.training.look.menu import MENU, make
from hessabs.training.progress import Progress
from hessabs.training.task import Task, attack_loss
from hessabs.typing import LossFn, Params

COLUMNS = tuple(name for name in Evaluation._fields if name not in ("withstood", "non_finite"))
_STEM_LENGTH = 60  # of the names in a file name
_SHOWN = 6  # images of each chunk that are kept for the sheet


class Options(NamedTuple):
    """What to compute; one field, one flag of ``hessabs attack``."""

    attack: Annotated[str, f"attacks, comma-separated: {', '.join(MENU)}"] = "pgd"
    epsilon: Annotated[
        str, "radii in the units of the inputs (images: [0, 1]), comma-separated; 8/255 is one, too"
    ] = "0.01,0.02"
    norm: Annotated[str, f"of epsilon: {', '.join(get_args(Norm))}; not every attack has all"] = "linf"
    steps: Annotated[int, "gradient steps of iterated attacks"] = 40
    restarts: Annotated[int, "random starts of pgd, adam_pgd and apgd"] = 1
    queries: Annotated[int, "evaluations of each image by the square attack"] = 1000
    num_examples: Annotated[int, "use only so many test images; 0 for all"] = 0
    batch_size: Annotated[int, "images attacked at once; a finished batch is kept"] = 1000
    source: Annotated[str | None, "folder of another finished run to make the examples on (transfer)"] = None
    seed: Annotated[int, "seed of random starts"] = 0
    keep_fallen: Annotated[
        bool, "count an image that fell at a smaller epsilon as fallen at the larger ones"
    ] = True


class _Network(NamedTuple):
    loss_fn: LossFn  # carries its logits
    params: Params
    digest: str


class _Chunk(NamedTuple):
    start: int  # number of its first example
    size: int
    digest: str


class _Shared(NamedTuple):
    """What all chunks share."""

    task: Task
    options: Options
    folder: pathlib.Path
    network: _Network  # that judges
    source: _Network  # that the examples are made on


def attack(
    task: Task,
    params: Params,
    model_state: Any,
    workdir: pathlib.Path,
    options: Options,
    source: tuple[Task, Params, Any] | None = None,
    how: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """Attack a network, write what it withstands into a folder, and return what the file of numbers holds.

    ``source`` is another network to make the examples on; ``options.source`` says where it came from. ``how``
    says what of the run was not taken as it was recorded.
    """
    names, epsilons = _check(task, options)
    network = _network(task, params, model_state)
    maker = network if source is None else _network(*source)
    if source is not None:
        _check_fit(task, network, maker, source[0])
    shared = _Shared(task, options, workdir / files.CACHE, network, maker)
    chunks = list(_chunks(task, options))
    clean, signs = (outcomes.join(parts) for parts in zip(*(_clean(shared, c) for c in chunks), strict=True))
    results: dict[tuple[str, float], Outcome] = {}
    sheet = None
    with Progress(len(clean.right) * len(names) * len(epsilons)) as bar:
        for name, epsilon in ((name, epsilon) for epsilon in epsilons for name in names):
            parts = []
            for chunk in chunks:
                parts.append(_attacked(shared, name, epsilon, chunk))
                done = len(results) * len(clean.right) + chunk.start + chunk.size
                bar.show(done, attack=name, epsilon=epsilon)
            sheet = _sheet(f"{name}, epsilon {epsilon:g}", task, parts[0], epsilon) or sheet
            results[name, epsilon] = outcomes.join([_take(Outcome, part) for part in parts])
    minimal = {name for name in names if MENU[name].minimal}
    black_box = {name for name in names if MENU[name].black_box}
    rows, warnings = report(
        clean, signs, results, keep_fallen=options.keep_fallen, minimal=minimal, black_box=black_box
    )
    record = {
        **options._asdict(),
        **how,
        "images": len(clean.right),
        "rows": [{name: getattr(row, name) for name in COLUMNS} for row in rows],
        "warnings": warnings,
    }
    path = workdir / stem(options, how)
    files.write_json(path.with_name(f"{path.name}.json"), record)
    with path.with_name(f"{path.name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS)
        writer.writeheader()
        writer.writerows(record["rows"])
    title = f"accuracy on {record['images']} test images, {options.norm}"
    pictures.draw_accuracy(path.with_name(f"{path.name}.png"), rows, title)
    if sheet is not None:
        pictures.draw_sheet(path.with_name(f"{path.name}_sheet.png"), sheet)
    return record


def stem(options: Options, how: Mapping[str, Any] = {}) -> str:
    """Return the name of the files without what follows the point; other options have another one.

    Example:
      >>> stem(Options(attack="fgsm,pgd"))  # doctest: +ELLIPSIS
      'attack-fgsm+pgd-linf-...'
      >>> stem(Options(steps=10)) == stem(Options(steps=40))
      False
    """
    kind = "attack" if options.source is None else "transfer"
    names = "+".join(name.strip() for name in options.attack.split(","))
    epsilons = [number(part) for part in options.epsilon.split(",")]
    identity = cache.identify(**{**options._asdict(), **how, "attack": names, "epsilon": epsilons})
    return f"{kind}-{names[:_STEM_LENGTH]}-{options.norm}-{identity[:6]}"


def _check(task: Task, options: Options) -> tuple[list[str], list[float]]:
    names = [name.strip() for name in options.attack.split(",")]
    try:
        epsilons = [number(part) for part in options.epsilon.split(",")]
    except ValueError:
        raise ValueError(
            "`epsilon` must be numbers separated by commas, or fractions such as 8/255, got "
            f"{options.epsilon!r}."
        ) from None
    check_one_of(get_args(Norm), norm=options.norm)
    for name in names:
        for epsilon in epsilons:
            _make(task, name, epsilon, options)
    if len(set(names)) < len(names) or len(set(epsilons)) < len(epsilons):
        raise ValueError(f"Name each attack and each epsilon once, got {options.attack} and {options.epsilon}.")
    if options.num_examples < 0 or options.batch_size < 1:
        raise ValueError(
            "`num_examples` must be at least 0 and `batch_size` at least 1, got "
            f"{options.num_examples} and {options.batch_size}."
        )
    return names, epsilons


def _make(task: Task, name: str, epsilon: float, options: Options) -> Any:
    return make(name, epsilon, options, bounds=task.bounds, inputs_key=task.inputs_key)


def _network(task: Task, params: Params, model_state: Any) -> _Network:
    digest = cache.identify(task=task.name, settings=task.settings, arrays=cache.digest((params, model_state)))
    return _Network(attack_loss(task, model_state), params, digest)


def _check_fit(task: Task, network: _Network, maker: _Network, other: Task) -> None:
    def shapes(task: Task, network: _Network) -> tuple[Any, ...]:
        batch = task.prepare(next(read(task.test, 1)))
        inputs = get_inputs(batch, task.inputs_key)
        logits = jax.eval_shape(losses.parts(network.loss_fn)[0], network.params, inputs)
        return (*inputs.shape[1:], logits.shape[-1])

    here, there = shapes(task, network), shapes(other, maker)
    if here != there:
        raise ValueError(
            "`source` must be a run on inputs of the same shape and classes, got (height, width, channels, "
            f"classes) {there}, and {here} in workdir."
        )


def _chunks(task: Task, options: Options) -> Iterator[_Chunk]:
    start = 0
    for batch in read(task.test, options.batch_size, number=options.num_examples):
        yield _Chunk(start, len(batch["weight"]), cache.digest(batch))
        start += len(batch["weight"])


def _read(task: Task, chunk: _Chunk) -> Any:
    batch = task.test.take(np.arange(chunk.start, chunk.start + chunk.size))
    return jax.jit(task.prepare)({**batch, "weight": np.ones(chunk.size, np.float32)})


def _clean(shared: _Shared, chunk: _Chunk) -> tuple[Clean, Misleading]:
    loss_fn, params, network = shared.network
    name, key, norm = f"{CLEAN}-{chunk.start}", shared.task.inputs_key, shared.options.norm
    identity = cache.identify(network=network, norm=norm, examples=chunk.digest)
    found = cache.find(shared.folder, name, identity)
    if found is None:
        batch = _read(shared.task, chunk)
        seen = outcomes.look(loss_fn, params, batch, key, norm)  # type: ignore[arg-type]
        found = {**seen._asdict(), **misleading.look(loss_fn, params, batch, key)._asdict()}
        cache.keep(shared.folder, name, identity, found)
    return _take(Clean, found), _take(Misleading, found)


def _attacked(shared: _Shared, name: str, epsilon: float, chunk: _Chunk) -> dict[str, Any]:
    """The arrays of an ``Outcome``, and of the first images that fell: where they are, and the labels."""
    (loss_fn, params, network), options, task = shared.network, shared.options, shared.task
    minimal = MENU[name].minimal  # then one result serves every epsilon
    identity = cache.identify(
        epsilon=None if minimal else epsilon,
        network=network,
        source=shared.source.digest,
        examples=chunk.digest,
        start=chunk.start,
        **{field: getattr(options, field) for field in ("norm", "seed", *MENU[name].reads)},
    )
    label = f"{name}-{chunk.start}" if minimal else f"{name}-{epsilon:g}-{chunk.start}"
    found = cache.find(shared.folder, label, identity)
    if found is not None:
        return found
    batch = _read(task, chunk)
    outcome, attacked = outcomes.run(
        _make(task, name, epsilon, options),
        loss_fn,
        params,
        batch,
        jax.random.fold_in(jax.random.key(options.seed), chunk.start),
        norm=options.norm,  # type: ignore[arg-type]
        bounds=task.bounds,
        inputs_key=task.inputs_key,
        source=(shared.source.loss_fn, shared.source.params),
    )
    logits_fn, _ = losses.parts(loss_fn)
    inputs = [np.asarray(get_inputs(each, task.inputs_key)) for each in (batch, attacked)]
    before, after = (np.argmax(logits_fn(params, x), axis=-1) for x in inputs)
    felled = np.flatnonzero((before == np.asarray(batch[task.label_key])) & ~outcome.stands)[:_SHOWN]
    arrays = {
        **outcome._asdict(),
        "places": felled,
        "clean": inputs[0][felled],
        "attacked": inputs[1][felled],
        "before": before[felled],
        "after": after[felled],
    }
    cache.keep(shared.folder, label, identity, arrays)
    return arrays


def _take(kind: Any, found: Mapping[str, Any]) -> Any:
    return kind(**{name: found[name] for name in kind._fields})


def _sheet(title: str, task: Task, part: dict[str, Any], epsilon: float) -> pictures.Sheet | None:
    within, shape = part["least"][part["places"]] <= epsilon, part["clean"].shape
    if not within.any() or len(shape) != 4 or shape[-1] not in (1, 3) or task.bounds is None:
        return None
    low, high = task.bounds
    clean, attacked = ((part[name][within] - low) / (high - low) for name in ("clean", "attacked"))
    return pictures.Sheet(title, clean, attacked, part["before"][within], part["after"][within])
