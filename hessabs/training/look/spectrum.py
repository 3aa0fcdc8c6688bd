"""The spectrum of a trained network: what ``hessabs spectrum`` computes and writes.

Files in the folder of the run: ``STEM.json`` (all numbers), ``STEM.csv`` (a line for each eigenvalue),
``STEM.png``; with the options ``STEM_examples.png``, ``STEM_density.png``, ``STEM_line.png`` and
``STEM_plane.png``; of a run with ``--track`` ``tracked.png``. STEM is ``spectrum`` and a digest of the options:
other options leave an earlier table alone. What was interrupted goes on where it was (``look/cache.py``):
eigenvalues from a saved Krylov state, a density at its next probe, a landscape at its next point.
"""

import csv
import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np

from hessabs import curvature, paths, trees
from hessabs.data import Source
from hessabs.training import files
from hessabs.training.look import cache
from hessabs.training.look.batches import raw_loss, raw_weight, read
from hessabs.training.look.pictures import draw_tracked
from hessabs.training.progress import Progress
from hessabs.training.task import Task
from hessabs.typing import MatVec, Params

_SINGLE = "training example"
_KRYLOV, _DIRECTIONS = "krylov", "directions"
_PROBES, _DENSITY_ITERS = 4, 60


class Options(NamedTuple):
    """What to compute; one field, one flag of ``hessabs spectrum``."""

    top: Annotated[int, "eigenvalues of the total Hessian, largest first, of training and test set"] = 20
    per_example: Annotated[int, "training examples whose own Hessian gets its top eigenvalues too"] = 0
    block: Annotated[
        str, "the eigenvalues of a layer's block as well, named by its path; last: the last layer's"
    ] = ""
    density: Annotated[bool, "the density of all eigenvalues on the training set"] = False
    landscape: Annotated[bool, "the loss along the first eigenvector and on the plane of the first two"] = False
    num_examples: Annotated[int, "use only so many examples of each set; 0 for all"] = 0
    batch_size: Annotated[int, "examples in one pass of the network"] = 2000
    rtol: Annotated[float, "relative residual at which an eigenpair is good enough"] = 1e-3
    max_matvecs: Annotated[int, "most Hessian-vector products for the eigenvalues of one matrix"] = 300
    save_seconds: Annotated[float, "seconds between two saves of a matrix under way"] = 30.0
    seed: Annotated[int, "seed of start vectors, probes and the choice of single examples"] = 0


# What the eigenvalues of a matrix depend on; the other options say which matrices there are.
_NUMBERS = ("top", "num_examples", "batch_size", "rtol", "max_matvecs", "seed")


class _Shared(NamedTuple):
    """What all matrices share."""

    task: Task
    params: Params
    model_state: Any
    sets: dict[str, Source]  # "training" and "test"
    options: Options
    start: Params
    folder: pathlib.Path  # of what is finished
    identity: str

    def batches(self, name: str) -> Any:
        options = self.options
        return read(self.sets[name], options.batch_size, number=options.num_examples)

    def num_examples(self, name: str) -> int:
        return min(self.options.num_examples or len(self.sets[name]), len(self.sets[name]))


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
    start = trees.normal_like(start_key, params)
    sets = {"training": task.train, "test": task.test}
    shared = _Shared(task, params, model_state, sets, options, start, workdir / files.CACHE, "")
    shared = shared._replace(identity=_identify(shared))
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
        curvature.draw_density(density, _picture(path, "_density"), title="training set")
        record["density"] = {name: np.asarray(value).tolist() for name, value in density._asdict().items()}
    _write(path, record, rows)
    if options.landscape:
        record["landscape"] = _landscapes(shared, path)
        files.write_json(path.with_name(f"{path.name}.json"), record)
    return record


def stem(options: Options, how: Mapping[str, Any] = {}) -> str:
    """Return the name of the files without what follows the point; other options have another one.

    Example:
      >>> stem(Options(top=3)) == stem(Options(top=3, save_seconds=0.0)) != stem(Options(top=4))
      True
    """
    return f"spectrum-{cache.identify(**options._replace(save_seconds=0.0)._asdict(), **how)[:6]}"


def _check(options: Options) -> None:
    for name in ("top", "batch_size", "max_matvecs"):
        if getattr(options, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(options, name)}.")
    for name in ("per_example", "num_examples", "save_seconds"):
        if not getattr(options, name) >= 0:
            raise ValueError(f"`{name}` must not be negative, got {getattr(options, name)}.")
    if options.max_matvecs < options.top:
        raise ValueError(f"`max_matvecs` must be at least `top`={options.top}, got {options.max_matvecs}.")
    if not options.rtol > 0:
        raise ValueError(f"`rtol` must be positive, got {options.rtol}.")


def _identify(shared: _Shared) -> str:
    task, numbers = shared.task, {name: getattr(shared.options, name) for name in _NUMBERS}
    return cache.identify(
        task=task.name,
        settings=task.settings,
        network=cache.digest((shared.params, shared.model_state)),
        data={name: [cache.digest(batch) for batch in shared.batches(name)] for name in shared.sets},
        options=numbers,
    )


def _once(shared: _Shared, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    found = cache.find(shared.folder, name, shared.identity)
    if found is None:
        found = compute()
        cache.keep(shared.folder, name, shared.identity, found)
    return found


def _of_set(shared: _Shared, name: str, label: str, block: str = "") -> list[dict[str, Any]]:
    options, with_directions = shared.options, shared.options.landscape and label == "training"

    def compute() -> dict[str, Any]:
        with Progress(shared.num_examples(name) * options.max_matvecs) as bar:
            operator, start = _operator(shared, name, bar), shared.start
            if block:
                operator = curvature.restrict(operator, shared.params, block)
                start, _ = paths.partition(start, block)
            k = min(options.top, sum(x.size for x in jax.tree.leaves(start)))
            result = solve(shared.folder, label, shared.identity, operator, start, k, options)
        if with_directions:
            first = {str(i): x[:2] for i, x in enumerate(jax.tree.leaves(result.eigenvectors))}
            cache.keep(shared.folder, _DIRECTIONS, shared.identity, first)
        return {"rows": _rows(label, result)}

    if with_directions and _directions(shared) is None:
        cache.drop(shared.folder, name)
    return list(_once(shared, label, compute)["rows"])


def _of_examples(shared: _Shared, key: jax.Array) -> list[dict[str, Any]]:
    options, rows = shared.options, []
    if not options.per_example:
        return []
    loss_fn = raw_loss(shared.task, shared.model_state)
    order = np.asarray(jax.random.permutation(key, shared.num_examples("training")))
    for index in order[: options.per_example]:
        label = f"{_SINGLE} {index}"

        def compute(index: int = index, label: str = label) -> dict[str, Any]:
            one = {**shared.sets["training"].take(np.array([index])), "weight": np.ones(1, np.float32)}
            operator = curvature.hessian(loss_fn, shared.params, one, linearize=True)
            k = min(options.top, sum(x.size for x in jax.tree.leaves(shared.params)))
            solver = functools.partial(curvature.eigsh, rtol=options.rtol, max_matvecs=options.max_matvecs)
            return {"rows": _rows(label, solver(operator, shared.start, k))}

        rows += _once(shared, label, compute)["rows"]
    return rows


def _density(shared: _Shared, key: jax.Array) -> curvature.SpectralDensity:
    operator = _operator(shared, "training")
    num_iters = min(_DENSITY_ITERS, sum(x.size for x in jax.tree.leaves(shared.params)))
    probes = []
    for number, one in enumerate(jax.random.split(key, _PROBES)):

        def compute(one: jax.Array = one) -> dict[str, Any]:
            options = {"num_probes": 1, "num_iters": num_iters}
            return curvature.spectral_density(operator, shared.params, one, **options)._asdict()

        probes.append(curvature.SpectralDensity(**_once(shared, f"density-{number}", compute)))

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(probe, name) for probe in probes])

    arrays = {name: joined(name) for name in ("nodes", "weights", "diagonal", "off_diagonal")}
    return curvature.SpectralDensity(**arrays, num_matvecs=sum(probe.num_matvecs for probe in probes))


def _landscapes(shared: _Shared, path: pathlib.Path) -> dict[str, list[Any]]:
    vectors = _directions(shared)
    count = len(jax.tree.leaves(vectors)[0])
    directions = [jax.tree.map(lambda x, i=i: x[i], vectors) for i in range(count)]
    losses = {}
    for name, number, points in (("line", 1, 21), ("plane", 2, 11)):
        if len(directions) < number:
            continue
        known = cache.find(shared.folder, name, shared.identity) or {"values": None}

        def keep(landscape: curvature.Landscape, name: str = name) -> None:
            cache.keep(shared.folder, name, shared.identity, {"values": landscape.values})

        result = curvature.landscape(
            raw_loss(shared.task, shared.model_state),
            shared.params,
            lambda: shared.batches("training"),
            directions[:number],
            [np.linspace(-0.5, 0.5, points)] * number,
            weight=raw_weight(shared.task, shared.params, shared.model_state),
            values=known["values"],
            on_point=keep,
        )
        curvature.draw_landscape(result, _picture(path, f"_{name}"), title="training loss along eigenvectors")
        losses[name] = result.values.tolist()
    cache.drop(shared.folder, _DIRECTIONS)  # as large as two networks
    return losses


def _operator(shared: _Shared, name: str, bar: Progress | None = None) -> MatVec:
    seen = 0

    def advance(count: int) -> None:
        nonlocal seen
        seen += count
        if bar is not None:
            bar.show(seen, matrix=name)

    return curvature.dataset_hessian(
        raw_loss(shared.task, shared.model_state),
        shared.params,
        lambda: shared.batches(name),
        weight=raw_weight(shared.task, shared.params, shared.model_state),
        progress=advance,
    )


def solve(
    folder: pathlib.Path, name: str, identity: str, matvec: MatVec, v0: Params, k: int, options: Any
) -> curvature.EigshResult:
    """Call ``eigsh``, saving its state every ``options.save_seconds`` and going on from what was saved.

    The result has the same bits whether it was interrupted or not.
    """
    identity = cache.identify(of=identity, matrix=name, k=k)
    saved_at = time.perf_counter()

    def save(state: curvature.KrylovState) -> None:
        nonlocal saved_at
        if time.perf_counter() - saved_at < options.save_seconds:
            return
        fields = {field: np.asarray(value) for field, value in state._asdict().items()}
        fields["basis"] = fields["basis"][: int(state.built)]
        cache.keep(folder, _KRYLOV, identity, fields)
        cache.drop(folder, _KRYLOV, but=identity)
        saved_at = time.perf_counter()

    state, fields = None, cache.find(folder, _KRYLOV, identity)
    if fields is not None:
        shape, rows = fields["basis"].shape, len(fields["projected"])
        if shape != (fields["built"], sum(x.size for x in jax.tree.leaves(v0))) or shape[0] > rows:
            files.say(f"The saved state of {name} is left aside: its basis has the shape {shape}.")
        else:
            files.say(f"{name}: going on after {fields['num_matvecs']} products.")
            fields["basis"] = np.pad(fields["basis"], ((0, rows - shape[0]), (0, 0)))
            state = curvature.KrylovState(**fields)
    limits = {"rtol": options.rtol, "max_matvecs": options.max_matvecs}
    result: curvature.EigshResult = curvature.eigsh(matvec, v0, k, state=state, save=save, **limits)
    cache.drop(folder, _KRYLOV)
    return result


def _directions(shared: _Shared) -> Any:
    leaves, treedef = jax.tree.flatten(shared.params)
    found = cache.find(shared.folder, _DIRECTIONS, shared.identity)
    return None if found is None else jax.tree.unflatten(treedef, [found[str(i)] for i in range(len(leaves))])


def _rows(name: str, result: curvature.EigshResult) -> list[dict[str, Any]]:
    columns = zip(result.eigenvalues, result.residuals, result.converged, strict=True)
    return [
        {"matrix": name, "number": i + 1, "eigenvalue": float(v), "residual": float(r), "converged": bool(c)}
        for i, (v, r, c) in enumerate(columns)
    ]


def _write(path: pathlib.Path, record: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    files.write_json(path.with_name(f"{path.name}.json"), record)
    with path.with_name(f"{path.name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    names = dict.fromkeys(row["matrix"] for row in rows)
    spectra = {n: np.array([row["eigenvalue"] for row in rows if row["matrix"] == n]) for n in names}
    single = {name: values for name, values in spectra.items() if name.startswith(_SINGLE)}
    whole = {name: values for name, values in spectra.items() if name not in single}
    curvature.draw_spectra(whole, _picture(path, ""), title="largest Hessian eigenvalues")
    if single:
        title = "largest Hessian eigenvalues of single examples"
        curvature.draw_spectra(single, _picture(path, "_examples"), title=title)
    epochs = path.with_name(files.METRICS)
    if epochs.exists():
        draw_tracked(path.with_name("tracked.png"), files.read_lines(epochs), title="by epoch")


def _picture(path: pathlib.Path, kind: str) -> pathlib.Path:
    return path.with_name(f"{path.name}{kind}.png")
