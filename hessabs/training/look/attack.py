"""A trained network under attack: what ``hessabs attack`` computes and writes.

Files in the folder of the run: ``STEM.json`` (all numbers), ``STEM.csv`` (a line for each attack and epsilon),
``STEM.png`` (accuracy against epsilon), ``STEM_sheet.png`` (images). STEM names the attacks, the norm and, by a
digest, all other options: other options leave an earlier table alone. It begins with ``attack``, or with
``transfer`` for examples made on another run. The result of each attack, epsilon and chunk of examples is kept
(``look/cache.py``): an evaluation that was interrupted, or is repeated with more attacks, goes on from there.
"""

import inspect
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np

from hessabs import attacks, data, jaxprs, plots
from hessabs.attacks import losses, misleading, outcomes
from hessabs.attacks.evaluate import report
from hessabs.attacks.misleading import Misleading
from hessabs.attacks.norms import Norm
from hessabs.attacks.outcomes import CLEAN, Clean, Evaluation, Outcome
from hessabs.data.order import sample_places
from hessabs.inputs import get_inputs
from hessabs.training import fields, files
from hessabs.training.look import cache, pictures
from hessabs.training.progress import Progress
from hessabs.training.task import Task, attack_loss
from hessabs.typing import Attack, LossFn, Params

COLUMNS = tuple(name for name in Evaluation._fields if name not in ("withstood", "non_finite"))
_STEM_LENGTH = 60  # of the names in a file name
_SHOWN = 6  # images of each chunk that are kept for the sheet


class Entry(NamedTuple):
    """One attack of the command, and how it is made of the options."""

    factory: Callable[..., Attack]  # of epsilon, unless `minimal`, and of options by name
    norms: tuple[str, ...]  # the first is that of a factory that has one alone
    reads: tuple[str, ...] = ()  # of steps, restarts and queries
    minimal: bool = False  # looks for the smallest perturbation, whatever epsilon is
    black_box: bool = False  # follows no gradient


def _trust_region(*, norm: Norm, **options: Any) -> Attack:
    radius = {"l2": 0.05, "linf": 0.005}[norm]  # to begin with; it adapts
    return attacks.trust_region(radius, norm=norm, **options)


_BOTH, _ALL = ("linf", "l2"), ("linf", "l2", "l1")
MENU: dict[str, Entry] = {
    "fgsm": Entry(attacks.fgsm, _BOTH),
    "l2grad": Entry(attacks.l2grad, ("l2",)),
    "bim": Entry(attacks.bim, _ALL, ("steps",)),
    "pgd": Entry(attacks.pgd, _ALL, ("steps", "restarts")),
    "mi_fgsm": Entry(attacks.mi_fgsm, _ALL, ("steps",)),
    "adam_pgd": Entry(attacks.adam_pgd, _ALL, ("steps", "restarts")),
    "apgd": Entry(attacks.apgd, _ALL, ("steps", "restarts")),
    "fhsm": Entry(attacks.fhsm, ("linf",)),
    "l2hess": Entry(attacks.l2hess, ("l2",)),
    "square": Entry(attacks.square, _ALL, ("queries",), black_box=True),
    "ensemble": Entry(attacks.ensemble, _ALL, ("steps", "queries")),
    "trust_region": Entry(_trust_region, _BOTH, ("steps",), minimal=True),
    "deepfool": Entry(attacks.deepfool, _BOTH, ("steps",), minimal=True),
    "carlini_wagner": Entry(attacks.carlini_wagner, ("l2",), ("steps",), minimal=True),
}
"""From the cheapest to the dearest; those that know no epsilon last."""


class Options(NamedTuple):
    """What to compute; one field, one flag of ``hessabs attack``."""

    attack: Annotated[tuple[str, ...], f"attacks, comma-separated: {', '.join(MENU)}"] = ("pgd",)
    epsilon: Annotated[
        tuple[float, ...],
        "radii in the units of the inputs (images: [0, 1]), comma-separated; 8/255 is one, too",
    ] = (0.01, 0.02)
    norm: Annotated[Norm, "of epsilon; not every attack has all"] = "linf"
    steps: Annotated[
        int | None,
        "gradient steps of iterated attacks; default: each attack's own, 40 of pgd, 1000 of carlini_wagner",
        "be at least 1",
    ] = None
    restarts: Annotated[int, "random starts of pgd, adam_pgd and apgd", "be at least 1"] = 1
    queries: Annotated[int, "evaluations of each image by the square attack", "be at least 1"] = 1000
    num_examples: Annotated[int, "use only so many test images, drawn; 0 for all", "be at least 0"] = 0
    batch_size: Annotated[int, "images attacked at once; a finished batch is kept", "be at least 1"] = 1000
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
    places: np.ndarray  # of its examples in the test set
    digest: str


class _Shared(NamedTuple):
    """What all chunks share."""

    task: Task
    options: Options
    folder: pathlib.Path  # of what is finished
    network: _Network  # that judges
    source: _Network  # that the examples are made on

    def place(self, name: str, chunk: _Chunk, **depends: Any) -> cache.Place:
        """Say where what a chunk has given is kept."""
        network, norm = self.network.digest, self.options.norm
        identity = cache.identify(network=network, norm=norm, examples=chunk.digest, **depends)
        return cache.Place(cache.Kept(self.folder, identity), f"{name}-{chunk.start}")


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
    _check(task, options)
    network = maker = _network(task, params, model_state)
    if source is not None:
        maker = _network(*source)
        here, there = _shapes(task, network), _shapes(source[0], maker)
        if here != there:
            raise ValueError(
                "`source` must be a run on inputs of the same shape and classes, got (height, width, channels, "
                f"classes) {there}, and {here} in workdir."
            )
    shared = _Shared(task, options, workdir / files.CACHE, network, maker)
    chunks = list(_chunks(task, options))
    clean, signs = (outcomes.join(parts) for parts in zip(*(_clean(shared, c) for c in chunks), strict=True))
    results: dict[tuple[str, float], Outcome] = {}
    shown: dict[tuple[str, float], dict[str, Any]] = {}  # of the first chunk
    work = itertools.product(options.epsilon, options.attack, chunks)
    counts = {_place(shared, name, epsilon, chunk): len(chunk.places) for epsilon, name, chunk in work}
    left = {place: count for place, count in counts.items() if not place.is_filled()}  # takes time, each once
    total = sum(counts.values())
    with Progress(total, total - sum(left.values())) as bar:
        for epsilon, name in itertools.product(options.epsilon, options.attack):
            parts = []
            for chunk in chunks:
                parts.append(_attacked(shared, name, epsilon, chunk))
                left.pop(_place(shared, name, epsilon, chunk), None)
                bar.show(total - sum(left.values()), attack=name, epsilon=epsilon)
            shown[name, epsilon] = parts[0]
            results[name, epsilon] = outcomes.join([_take(Outcome, part) for part in parts])
    minimal, black_box = ({n for n in MENU if getattr(MENU[n], kind)} for kind in ("minimal", "black_box"))
    attacks_made = {name: make(name, 0.0, options) for name in options.attack} if source is not None else {}
    stopped = [name for name, made in attacks_made.items() if getattr(made, "early_exit", False)]
    kinds: dict[str, Any] = {"minimal": minimal, "black_box": black_box, "stopped": stopped}
    rows, warnings = report(clean, signs, results, keep_fallen=options.keep_fallen, **kinds)
    record = {
        **options._asdict(),
        **how,
        "images": len(clean.right),
        "rows": [{name: getattr(row, name) for name in COLUMNS} for row in rows],
        "warnings": warnings,
    }
    name = stem(options, how)
    files.write_json(workdir / f"{name}.json", record)
    files.write_csv(workdir / f"{name}.csv", record["rows"])
    plot = plots.robustness(rows, plots.figure(7, 4.5).subplots(), norm=options.norm, bounds=task.bounds)
    pictures.save(workdir / f"{name}.png", plot, f"accuracy on {record['images']} test images")
    attacked = (row for row in rows if (row.attack, row.epsilon) in shown)
    strongest = sorted(attacked, key=lambda row: (-row.epsilon, row.accuracy))
    sheets = (_sheet(task, row.attack, row.epsilon, shown[row.attack, row.epsilon]) for row in strongest)
    sheet = next((sheet for sheet in sheets if sheet is not None), None)
    if sheet is not None:
        pictures.draw_sheet(workdir / f"{name}_sheet.png", sheet)
    return record


def stem(options: Options, how: Mapping[str, Any] = {}) -> str:
    """Return the name of the files without what follows the point; other options have another one.

    Example:
      >>> stem(Options(attack=("fgsm", "pgd")))  # doctest: +ELLIPSIS
      'attack-fgsm+pgd-linf-...'
      >>> stem(Options(steps=10)) == stem(Options(steps=40))
      False
    """
    kind, names = "attack" if options.source is None else "transfer", "+".join(options.attack)
    identity = cache.identify(**{**options._asdict(), **how, "attack": names})
    return f"{kind}-{names[:_STEM_LENGTH]}-{options.norm}-{identity[:6]}"


def readers(option: str) -> tuple[str, ...]:
    """List the attacks that ``steps``, ``restarts`` or ``queries`` has an influence on.

    Example:
      >>> readers("queries")
      ('square', 'ensemble')
    """
    return tuple(name for name, entry in MENU.items() if option in entry.reads)


def make(name: str, epsilon: float, options: Options, **inputs: Any) -> Attack:
    """Make an attack of ``MENU`` on ``inputs``: their ``bounds`` and ``inputs_key``."""
    entry = MENU.get(name)
    if entry is None:
        raise ValueError(f"`attack` must name some of {', '.join(MENU)}, got {name!r}.")
    if options.norm not in entry.norms:
        raise ValueError(f"`attack` {name} has the norms {', '.join(entry.norms)}, got norm={options.norm!r}.")
    named = {option: getattr(options, option) for option in entry.reads}
    named = {option: value for option, value in named.items() if value is not None}  # else the attack's own
    if len(entry.norms) > 1:
        named["norm"] = options.norm
    if options.source is not None and "early_exit" in inspect.signature(entry.factory).parameters:
        named["early_exit"] = False  # the first error of the source is seldom one of another network
    return entry.factory(*(() if entry.minimal else (epsilon,)), **named, **inputs)


def _check(task: Task, options: Options) -> None:
    fields.check(options)
    for name, epsilon in itertools.product(options.attack, options.epsilon):
        make(name, epsilon, options, bounds=task.bounds, inputs_key=task.inputs_key)
    for names in (options.attack, options.epsilon):
        if not names or len({*names}) < len(names):
            raise ValueError(
                f"Name each attack and each epsilon once, got {options.attack} and {options.epsilon}."
            )


def _network(task: Task, params: Params, model_state: Any) -> _Network:
    loss_fn = attack_loss(task, model_state)
    program = jax.make_jaxpr(lambda params, batch: loss_fn(params, task.prepare(batch)))
    digest = cache.identify(
        task=task.name,
        settings=task.settings,
        inputs=(task.bounds, task.inputs_key, task.label_key),
        computes=jaxprs.digest(program(params, _read(task, np.arange(1)))),
        arrays=cache.digest((params, model_state)),
    )
    return _Network(loss_fn, params, digest)


def _shapes(task: Task, network: _Network) -> tuple[int, ...]:
    # Of one input, and how many classes there are.
    inputs = get_inputs(task.prepare(next(data.eval_batches(task.test, 1))), task.inputs_key)
    logits = jax.eval_shape(losses.parts(network.loss_fn)[0], network.params, inputs)
    return (*inputs.shape[1:], logits.shape[-1])


def _chunks(task: Task, options: Options) -> Iterator[_Chunk]:
    places = sample_places(options.num_examples, len(task.test))
    for start in range(0, len(places), options.batch_size):
        own = places[start : start + options.batch_size]
        yield _Chunk(start, own, cache.digest(_read(task, own)))


def _read(task: Task, places: np.ndarray) -> dict[str, Any]:
    return {**task.test.take(places), "weight": np.ones(len(places), np.float32)}


def _prepared(task: Task, chunk: _Chunk) -> Any:
    return jax.jit(task.prepare)(_read(task, chunk.places))


def _clean(shared: _Shared, chunk: _Chunk) -> tuple[Clean, Misleading]:
    def compute() -> dict[str, Any]:
        loss_fn, params, _ = shared.network
        batch, key = _prepared(shared.task, chunk), shared.task.inputs_key
        seen = outcomes.look(loss_fn, params, batch, key, shared.options.norm)
        return {**seen._asdict(), **misleading.look(loss_fn, params, batch, key, seen.right)._asdict()}

    found = shared.place(CLEAN, chunk).once(compute)
    return _take(Clean, found), _take(Misleading, found)


def _attacked(shared: _Shared, name: str, epsilon: float, chunk: _Chunk) -> dict[str, Any]:
    """The arrays of an ``Outcome``, and of the first images that fell: where they are, and the labels."""
    (loss_fn, params, _), source, options, task = shared.network, shared.source, shared.options, shared.task

    def compute() -> dict[str, Any]:
        batch = _prepared(task, chunk)
        outcome, attacked = outcomes.run(
            make(name, epsilon, options, bounds=task.bounds, inputs_key=task.inputs_key),
            loss_fn,
            params,
            batch,
            jax.random.fold_in(jax.random.key(options.seed), chunk.start),
            norm=options.norm,
            bounds=task.bounds,
            inputs_key=task.inputs_key,
            source=(source.loss_fn, source.params),
        )
        logits_fn, _ = losses.parts(loss_fn)
        inputs = [np.asarray(get_inputs(each, task.inputs_key)) for each in (batch, attacked)]
        before, after = (np.argmax(logits_fn(params, x), axis=-1) for x in inputs)
        felled = np.flatnonzero((before == np.asarray(batch[task.label_key])) & ~outcome.stands)[:_SHOWN]
        columns = {"clean": inputs[0], "attacked": inputs[1], "before": before, "after": after}
        return {**outcome._asdict(), "places": felled, **{n: x[felled] for n, x in columns.items()}}

    return _place(shared, name, epsilon, chunk).once(compute)


def _place(shared: _Shared, name: str, epsilon: float, chunk: _Chunk) -> cache.Place:
    minimal, source = MENU[name].minimal, shared.source  # of a minimal attack one result serves every epsilon
    depends = {field: getattr(shared.options, field) for field in ("seed", *MENU[name].reads)}
    depends |= {"epsilon": None if minimal else epsilon, "source": source.digest, "start": chunk.start}
    return shared.place(name if minimal else f"{name}-{epsilon:g}", chunk, **depends)


def _take(kind: Any, found: Mapping[str, Any]) -> Any:
    return kind(**{name: found[name] for name in kind._fields if name in found})


def _sheet(task: Task, attack: str, epsilon: float, part: dict[str, Any]) -> pictures.Sheet | None:
    within, shape = part["least"][part["places"]] <= epsilon, part["clean"].shape
    if not within.any() or len(shape) != 4 or shape[-1] not in (1, 3) or task.bounds is None:
        return None
    clean, attacked = (part[name][within] for name in ("clean", "attacked"))
    # Those that fell were right before.
    before, after = ([task.class_name(label) for label in part[name][within]] for name in ("before", "after"))
    shades = _shades(task.bounds, np.stack([clean, attacked]))
    return pictures.Sheet(attack, epsilon, clean, attacked, before, before, after, shades)


def _shades(bounds: tuple[float, float], images: np.ndarray) -> tuple[float, float]:
    # What is black and what is white: the bounds where they are finite, else the extremes of the images.
    low, high = (
        float(bound if np.isfinite(bound) else extreme)
        for bound, extreme in zip(bounds, (images.min(), images.max()), strict=True)
    )
    return low, high if high > low else low + 1
