"""The spectrum of a trained network: what ``hessabs spectrum`` computes and writes.

Files in the folder of the run: ``STEM.json`` (all numbers), ``STEM.csv`` (a line for each eigenvalue),
``STEM.png``; with the options ``STEM_examples.png``, ``STEM_density.png``, ``STEM_line.png`` and
``STEM_plane.png``; of a run with ``--track`` ``tracked.png``. STEM is ``spectrum`` and a digest of the options:
other options leave an earlier table alone. What was interrupted goes on where it was (``look/cache.py``):
eigenvalues from a saved Krylov state, a density at its next probe, a landscape at its next point.
"""

import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np

from hessabs import curvature, jaxprs, paths, plots, trees
from hessabs.data import Source
from hessabs.data.order import sample_places
from hessabs.training import fields, files
from hessabs.training.look import cache
from hessabs.training.look.pictures import draw_tracked, save
from hessabs.training.measure import raw_loss, raw_weight
from hessabs.training.progress import Progress
from hessabs.training.task import Task
from hessabs.typing import LossFn, MatVec, Params

_SINGLE = "training example"
_KRYLOV, _DIRECTIONS = "krylov", "directions"
_PROBES, _DENSITY_ITERS = 4, 60


class Options(NamedTuple):
    """What to compute; one field, one flag of ``hessabs spectrum``."""

    top: Annotated[
        int, "eigenvalues of the total Hessian, largest first, of training and test set", "be at least 1"
    ] = 20
    per_example: Annotated[
        int, "training examples whose own Hessian gets its top eigenvalues too", "be at least 0"
    ] = 0
    block: Annotated[
        str, "the eigenvalues of a layer's block as well, named by its path; last: the last layer's"
    ] = ""
    density: Annotated[bool, "the density of all eigenvalues on the training set"] = False
    landscape: Annotated[bool, "the loss along the first eigenvector and on the plane of the first two"] = False
    num_examples: Annotated[int, "use only so many examples of each set, drawn; 0 for all", "be at least 0"] = 0
    batch_size: Annotated[int, "examples in one pass of the network", "be at least 1"] = 2000
    rtol: Annotated[
        float, "relative residual at which an eigenpair is good enough", "be positive and finite"
    ] = 1e-3
    max_matvecs: Annotated[
        int, "most Hessian-vector products for the eigenvalues of one matrix", "be at least 1"
    ] = 300
    save_seconds: Annotated[float, "seconds between two saves of a matrix under way", "be at least 0"] = 30.0
    seed: Annotated[int, "seed of start vectors, probes and the choice of single examples"] = 0


# What the eigenvalues of a matrix depend on; the other options say which matrices there are.
_NUMBERS = ("top", "num_examples", "batch_size", "rtol", "max_matvecs", "seed")


class _Shared(NamedTuple):
    """What all matrices share."""

    sets: dict[str, Source]  # "training" and "test"
    params: Params
    loss_fn: LossFn  # of batches as they are read
    weight: Callable[[Any], Any]  # the same
    options: Options
    start: Params
    kept: cache.Kept


def spectrum(
    task: Task,
    params: Params,
    model_state: Any,
    workdir: pathlib.Path,
    options: Options,
    how: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """Compute the spectrum of a network, write it into a folder, and return what the file of numbers holds.

    ``how`` says what of the run was not taken as it was recorded.
    """
    _check(options)
    start_key, example_key, density_key = jax.random.split(jax.random.key(options.seed), 3)
    sets, loss_fn = {"training": task.train, "test": task.test}, raw_loss(task, model_state)
    identity = cache.identify(
        task=task.name,
        settings=task.settings,
        computes=jaxprs.digest(jax.make_jaxpr(loss_fn)(params, _take(task.train, np.arange(1)))),
        network=cache.digest((params, model_state)),
        data={n: [cache.digest(batch) for batch in _batches(source, options)] for n, source in sets.items()},
        options={name: getattr(options, name) for name in _NUMBERS},
    )
    shared = _Shared(
        sets,
        params,
        loss_fn,
        raw_weight(task, params, model_state),
        options,
        trees.normal_like(start_key, params),
        cache.Kept(workdir / files.CACHE, identity),
    )
    block = curvature.last_layer_path(params, task.num_classes) if options.block == "last" else options.block
    if block:
        paths.partition(params, block)  # so that a path that leads nowhere is found out first
    rows: list[dict[str, Any]] = []
    for name in sets:
        rows += _of_set(shared, name, name)
        if block:
            what = "last layer" if options.block == "last" else block
            rows += _of_set(shared, name, f"{name}, {what}", block)
    rows += _of_examples(shared, example_key)
    record: dict[str, Any] = {**options._asdict(), **how, "eigenvalues": rows}
    path = workdir / stem(options, how)
    if options.density:
        density = _density(shared, density_key)
        save(f"{path}_density.png", plots.density(density), "Hessian of the training loss")
        record["density"] = {name: np.asarray(value).tolist() for name, value in density._asdict().items()}
    files.write_json(path.with_suffix(".json"), record)
    files.write_csv(path.with_suffix(".csv"), rows)
    _draw(path, rows)
    if options.landscape:
        record["landscape"] = _landscapes(shared, path)
        files.write_json(path.with_suffix(".json"), record)
    return record


def stem(options: Options, how: Mapping[str, Any] = {}) -> str:
    """Return the name of the files without what follows the point; other options have another one.

    Example:
      >>> stem(Options(top=3)) == stem(Options(top=3, save_seconds=0.0)) != stem(Options(top=4))
      True
    """
    return f"spectrum-{cache.identify(**options._replace(save_seconds=0.0)._asdict(), **how)[:6]}"


def _check(options: Options) -> None:
    fields.check(options)
    if options.max_matvecs < options.top:
        raise ValueError(f"`max_matvecs` must be at least `top`={options.top}, got {options.max_matvecs}.")


def _places(source: Source, options: Options) -> np.ndarray:
    return sample_places(options.num_examples, len(source))


def _batches(source: Source, options: Options) -> Iterator[dict[str, Any]]:
    places = _places(source, options)
    for start in range(0, len(places), options.batch_size):
        yield _take(source, places[start : start + options.batch_size])


def _take(source: Source, places: np.ndarray) -> dict[str, Any]:
    return {**source.take(places), "weight": np.ones(len(places), np.float32)}


def _of_set(shared: _Shared, name: str, label: str, block: str = "") -> list[dict[str, Any]]:
    options, kept = shared.options, shared.kept
    with_directions = options.landscape and label == "training"

    def compute() -> dict[str, Any]:
        with Progress(None) as bar:  # most matrices need far fewer products than `max_matvecs`
            operator, start = _operator(shared, name, bar), shared.start
            if block:
                operator = curvature.restrict(operator, shared.params, block)
                start, _ = paths.partition(start, block)
            result = solve(kept, label, operator, start, min(options.top, trees.size(start)), options)
        if with_directions:
            leaves = jax.tree.leaves(result.eigenvectors)
            kept.keep(_DIRECTIONS, {str(i): x[:2] for i, x in enumerate(leaves)})
        return {"rows": _rows(label, result)}

    if with_directions and kept.find(_DIRECTIONS) is None:
        kept.drop(name)
    return list(kept.once(label, compute)["rows"])


def _of_examples(shared: _Shared, key: jax.Array) -> list[dict[str, Any]]:
    options, training, rows = shared.options, shared.sets["training"], []
    if not options.per_example:
        return []
    places = _places(training, options)
    for index in places[np.asarray(jax.random.permutation(key, len(places)))[: options.per_example]]:
        label = f"{_SINGLE} {index}"

        def compute(index: int = index, label: str = label) -> dict[str, Any]:
            one = _take(training, np.array([index]))
            operator = curvature.hessian(shared.loss_fn, shared.params, one, linearize=True)
            k = min(options.top, trees.size(shared.params))
            return {"rows": _rows(label, _eigsh(options)(operator, shared.start, k))}

        rows += shared.kept.once(label, compute)["rows"]
    return rows


def _density(shared: _Shared, key: jax.Array) -> curvature.SpectralDensity:
    operator = _operator(shared, "training")
    num_iters = min(_DENSITY_ITERS, trees.size(shared.params))
    probes = []
    for number, one in enumerate(jax.random.split(key, _PROBES)):

        def compute(one: jax.Array = one) -> dict[str, Any]:
            probe = curvature.spectral_density(operator, shared.params, one, num_probes=1, num_iters=num_iters)
            return probe._asdict()

        probes.append(shared.kept.once(f"density-{number}", compute))
    num_matvecs = sum(probe.pop("num_matvecs") for probe in probes)
    arrays = {name: np.concatenate([probe[name] for probe in probes]) for name in probes[0]}
    return curvature.SpectralDensity(**arrays, num_matvecs=num_matvecs)


def _landscapes(shared: _Shared, path: pathlib.Path) -> dict[str, list[Any]]:
    kept, (leaves, treedef) = shared.kept, jax.tree.flatten(shared.params)
    saved = kept.find(_DIRECTIONS) or {}
    first = [saved[str(i)] for i in range(len(leaves))]
    directions = [jax.tree.unflatten(treedef, [x[i] for x in first]) for i in range(len(first[0]))]
    losses = {}
    for name, number, points in (("line", 1, 21), ("plane", 2, 11))[: len(directions)]:

        def keep(landscape: curvature.Landscape, name: str = name) -> None:
            kept.keep(name, {"values": landscape.values})

        result = curvature.landscape(
            shared.loss_fn,
            shared.params,
            lambda: _batches(shared.sets["training"], shared.options),
            directions[:number],
            [np.linspace(-0.5, 0.5, points)] * number,
            weight=shared.weight,
            values=(kept.find(name) or {}).get("values"),
            on_point=keep,
        )
        save(f"{path}_{name}.png", plots.landscape(result), "training loss (nats) along eigenvectors")
        losses[name] = result.values.tolist()
    kept.drop(_DIRECTIONS)  # as large as two networks
    return losses


def _operator(shared: _Shared, name: str, bar: Progress | None = None) -> MatVec:
    seen = 0

    def advance(count: int) -> None:
        nonlocal seen
        seen += count
        if bar is not None:
            bar.show(seen, matrix=name)

    def batches() -> Iterator[dict[str, Any]]:
        return _batches(shared.sets[name], shared.options)

    return curvature.dataset_hessian(
        shared.loss_fn, shared.params, batches, weight=shared.weight, progress=advance
    )


def solve(
    kept: cache.Kept, name: str, matvec: MatVec, v0: Params, k: int, options: Any
) -> curvature.EigshResult:
    """Call ``eigsh``, saving its state every ``options.save_seconds`` and going on from what was saved.

    The result has the same bits whether it was interrupted or not.
    """
    kept = kept._replace(identity=cache.identify(of=kept.identity, matrix=name, k=k))
    saved_at = time.perf_counter()

    def save(state: curvature.KrylovState) -> None:
        nonlocal saved_at
        if time.perf_counter() - saved_at < options.save_seconds:
            return
        fields = {field: np.asarray(value) for field, value in state._asdict().items()}
        fields["basis"] = fields["basis"][: int(state.built)]
        kept.keep(_KRYLOV, fields)
        kept.drop(_KRYLOV, others=True)
        saved_at = time.perf_counter()

    state, fields = None, kept.find(_KRYLOV)
    if fields is not None:
        shape, rows = fields["basis"].shape, len(fields["projected"])
        if shape != (fields["built"], trees.size(v0)) or shape[0] > rows:
            files.say(f"The saved state of {name} is left aside: its basis has the shape {shape}.")
        else:
            files.say(f"{name}: going on after {fields['num_matvecs']} products.")
            fields["basis"] = np.pad(fields["basis"], ((0, rows - shape[0]), (0, 0)))
            state = curvature.KrylovState(**fields)
    result = _eigsh(options)(matvec, v0, k, state=state, save=save)
    kept.drop(_KRYLOV)
    return result


def _eigsh(options: Any) -> Callable[..., curvature.EigshResult]:
    return functools.partial(curvature.eigsh, rtol=options.rtol, max_matvecs=options.max_matvecs)


def _rows(name: str, result: curvature.EigshResult) -> list[dict[str, Any]]:
    columns = zip(result.eigenvalues, result.residuals, result.converged, strict=True)
    return [
        {"matrix": name, "number": i + 1, "eigenvalue": float(v), "residual": float(r), "converged": bool(c)}
        for i, (v, r, c) in enumerate(columns)
    ]


def _draw(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    spectra: dict[str, Any] = {}
    for row in rows:
        spectra.setdefault(row["matrix"], []).append(row["eigenvalue"])
    single = {name: spectra.pop(name) for name in list(spectra) if name.startswith(_SINGLE)}
    save(f"{path}.png", plots.eigenvalues(spectra), "largest Hessian eigenvalues")
    if single:
        save(f"{path}_examples.png", plots.eigenvalues(single), "largest Hessian eigenvalues, single examples")
    epochs = path.with_name(files.METRICS)
    if epochs.exists():
        draw_tracked(path.with_name("tracked.png"), files.read_lines(epochs), title="by epoch")
