"""The spectrum of a trained run: what ``hessabs spectrum`` computes and writes.

Files in the folder of the run: ``spectrum.json`` (all numbers), ``spectrum.csv`` (a line for each eigenvalue),
``spectrum.png``; of a run with ``--track`` ``tracked.png``, full against last-layer eigenvalues by epoch; and
with the options ``examples.png``, ``density.png``, ``landscape.json``, ``line.png`` and ``plane.png``. What
was interrupted goes on where it was: eigenvalues from a saved Krylov state, a density at its next probe, a
landscape at its next point.
"""

import csv
import json
import pathlib
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from hessabs import curvature, paths, trees
from hessabs.training import metrics
from hessabs.training.analysis.spectrum_state import SpectrumState, fingerprint
from hessabs.training.analysis.trained import load_trained
from hessabs.training.losses import evaluation_loss, scale_images
from hessabs.training.progress import Progress
from hessabs.training.reports.tracked import draw_tracked
from hessabs.training.track import last_layer
from hessabs.typing import LossFn, Params

SPECTRUM = "spectrum.json"


_SINGLE = "training image"


class Options(NamedTuple):
    """What to compute; one field, one flag of ``hessabs spectrum``."""

    top: Annotated[int, "eigenvalues of the total Hessian, largest first, of training and test set"] = 20
    per_example: Annotated[int, "training images whose own Hessian gets its top eigenvalues too"] = 0
    block: Annotated[str, "last: the eigenvalues of the last layer's block as well; empty for none"] = ""
    density: Annotated[bool, "the density of all eigenvalues on the training set"] = False
    landscape: Annotated[bool, "the loss along the first eigenvector and on the plane of the first two"] = False
    num_examples: Annotated[int, "use only so many images of each set; 0 for all"] = 0
    batch_size: Annotated[int, "images in one pass of the network"] = 2000
    rtol: Annotated[float, "relative residual at which an eigenpair is good enough"] = 1e-3
    max_matvecs: Annotated[int, "most Hessian-vector products for the eigenvalues of one matrix"] = 300
    save_seconds: Annotated[float, "seconds between two saves of a matrix under way"] = 30.0
    seed: Annotated[int, "seed of start vectors, probes and the choice of single images"] = 0


class _Trained(NamedTuple):
    loss_fn: LossFn  # on batches of uint8 images
    params: Params
    head: str  # path of the last layer
    sets: dict[str, list[dict[str, np.ndarray]]]  # batches of "training" and "test"


def spectrum(workdir: pathlib.Path, options: Options) -> dict[str, Any]:
    """Compute the spectrum of the network that a run left, and write it into its folder.

    Args:
      workdir: The folder of a finished run.
      options: What to compute.

    Returns:
      What ``spectrum.json`` holds.

    Raises:
      FileNotFoundError: If the folder holds no finished run.
      ValueError: If an option is out of range, or the data is not on disk.
    """
    _check(options)
    trained = _load(workdir, options)
    signature = fingerprint(trained.params, trained.sets, {n: getattr(options, n) for n in _NUMBERS})
    state = SpectrumState(workdir, signature, options.save_seconds)
    start_key, example_key, density_key = jax.random.split(jax.random.key(options.seed), 3)
    start = trees.normal_like(start_key, trained.params)
    rows: list[dict[str, Any]] = []
    for name in trained.sets:
        rows += _set_rows(state, trained, options, name, start)
        if options.block:
            rows += _block_rows(state, trained, options, name, start)
    if options.per_example:
        rows += _single_examples(state, trained, options, example_key, start)
    record: dict[str, Any] = {**options._asdict(), "eigenvalues": rows}
    if options.density:
        record["density"] = _density(state, trained, density_key, workdir)
    _write(workdir, record, rows)
    if options.landscape:
        _landscape(state, trained, workdir, signature)
    state.close()
    return record


# What the eigenvalues of a matrix depend on; the other options say which matrices there are.
_NUMBERS = ("top", "num_examples", "batch_size", "rtol", "max_matvecs", "seed")


def _check(options: Options) -> None:
    for name in ("top", "batch_size", "max_matvecs"):
        if getattr(options, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(options, name)}.")
    for name in ("per_example", "num_examples"):
        if getattr(options, name) < 0:
            raise ValueError(f"`{name}` must not be negative, got {getattr(options, name)}.")
    if options.max_matvecs < options.top:
        raise ValueError(f"`max_matvecs` must be at least `top`={options.top}, got {options.max_matvecs}.")
    if not options.rtol > 0:
        raise ValueError(f"`rtol` must be positive, got {options.rtol}.")
    if not options.save_seconds >= 0:
        raise ValueError(f"`save_seconds` must not be negative, got {options.save_seconds}.")
    if options.block not in ("", "last"):
        raise ValueError(f'`block` must be "last" or empty, got {options.block!r}.')


def _load(workdir: pathlib.Path, options: Options) -> _Trained:
    run = load_trained(workdir)
    sets = {
        name: _cut(split, options)
        for name, split in (("training", run.dataset.train), ("test", run.dataset.test))
    }
    loss = evaluation_loss(run.model, run.model_state)
    head = last_layer(run.params, run.dataset.num_classes)
    return _Trained(Partial(_scaled_loss, loss), run.params, head, sets)


def _scaled_loss(loss_fn: LossFn, params: Params, batch: Any) -> jax.Array:
    return loss_fn(params, scale_images(batch))


def _cut(split: dict[str, np.ndarray], options: Options) -> list[dict[str, np.ndarray]]:
    number = min(options.num_examples or len(split["label"]), len(split["label"]))
    whole = {**{name: array[:number] for name, array in split.items()}, "weight": np.ones(number, np.float32)}
    return [
        {name: array[i : i + options.batch_size] for name, array in whole.items()}
        for i in range(0, number, options.batch_size)
    ]


def _set_rows(
    state: SpectrumState, trained: _Trained, options: Options, name: str, start: Params
) -> list[dict[str, Any]]:
    if name not in state.done or (name == "training" and state.directions(trained.params) is None):
        with Progress(_num_examples(trained, name) * options.max_matvecs) as bar:
            operator = _data_set_operator(trained, name, bar)
            result = state.eigsh(name, operator, start, options.top, **_solver(options))
        if name == "training":
            state.keep_directions(jax.tree.map(lambda x: x[:2], result.eigenvectors))
        state.keep(name, _rows(name, result))
    return state.done[name]


def _block_rows(
    state: SpectrumState, trained: _Trained, options: Options, name: str, start: Params
) -> list[dict[str, Any]]:
    label = f"{name}, last layer"
    if label not in state.done:
        block = curvature.restrict(_data_set_operator(trained, name), trained.params, trained.head)
        block_start, _ = paths.partition(start, trained.head)
        size = sum(x.size for x in jax.tree.leaves(block_start))
        result = state.eigsh(label, block, block_start, min(options.top, size), **_solver(options))
        state.keep(label, _rows(label, result))
    return state.done[label]


def _solver(options: Options) -> dict[str, Any]:
    return {"rtol": options.rtol, "max_matvecs": options.max_matvecs}


def _data_set_operator(trained: _Trained, name: str, bar: Progress | None = None) -> Any:
    seen = 0

    def advance(count: int) -> None:
        nonlocal seen
        seen += count
        if bar is not None:
            bar.show(seen, matrix=name)

    return curvature.dataset_hessian(trained.loss_fn, trained.params, trained.sets[name], progress=advance)


def _num_examples(trained: _Trained, name: str) -> int:
    return sum(len(batch["label"]) for batch in trained.sets[name])


def _rows(name: str, result: Any) -> list[dict[str, Any]]:
    columns = zip(result.eigenvalues, result.residuals, result.converged, strict=True)
    return [
        {"matrix": name, "number": i + 1, "eigenvalue": float(v), "residual": float(r), "converged": bool(c)}
        for i, (v, r, c) in enumerate(columns)
    ]


def _single_examples(
    state: SpectrumState, trained: _Trained, options: Options, key: jax.Array, start: Params
) -> list[dict[str, Any]]:
    order = jax.random.permutation(key, _num_examples(trained, "training"))
    chosen = np.asarray(order)[: options.per_example]
    rows = []
    for index in chosen:
        label = f"{_SINGLE} {index}"
        if label in state.done:
            rows += state.done[label]
            continue
        batch = trained.sets["training"][index // options.batch_size]
        place = index % options.batch_size
        one = {name: array[place : place + 1] for name, array in batch.items()}
        operator = curvature.hessian(trained.loss_fn, trained.params, one, linearize=True)
        state.keep(label, _rows(label, curvature.eigsh(operator, start, options.top, **_solver(options))))
        rows += state.done[label]
    return rows


def _density(state: SpectrumState, trained: _Trained, key: jax.Array, workdir: pathlib.Path) -> dict[str, Any]:
    operator = _data_set_operator(trained, "training")
    num_iters = min(_DENSITY_ITERS, sum(x.size for x in jax.tree.leaves(trained.params)))
    probes = []
    for number, one in enumerate(jax.random.split(key, _DENSITY_PROBES)):
        label = f"density, probe {number}"
        if label not in state.done:
            probe = curvature.spectral_density(operator, trained.params, one, num_probes=1, num_iters=num_iters)
            state.keep(label, {name: np.asarray(value).tolist() for name, value in probe._asdict().items()})
        probes.append(state.done[label])
    whole = {
        name: np.concatenate([np.array(p[name], float) for p in probes]) for name in probes[0] if name != _COUNT
    }
    density = curvature.SpectralDensity(**whole, num_matvecs=sum(p[_COUNT] for p in probes))
    curvature.draw_density(density, workdir / "density.png", title="training set")
    return {name: np.asarray(value).tolist() for name, value in density._asdict().items()}


_COUNT, _DENSITY_PROBES, _DENSITY_ITERS = "num_matvecs", 4, 60


def _landscape(state: SpectrumState, trained: _Trained, workdir: pathlib.Path, signature: str) -> None:
    path = workdir / "landscape.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if known.get("fingerprint") != signature:
        known = {"fingerprint": signature}
    vectors: Any = state.directions(trained.params)
    count = len(jax.tree.leaves(vectors)[0])
    directions = [jax.tree.map(lambda x, i=i: x[i], vectors) for i in range(count)]
    for name, number, points in (("line", 1, 21), ("plane", 2, 11)):
        if len(directions) < number:
            continue
        grid = [np.linspace(-0.5, 0.5, points)] * number
        values = np.array(known[name], float) if name in known else None

        def keep(landscape: curvature.Landscape, name: str = name) -> None:
            known[name] = landscape.values.tolist()
            metrics.write_json(path, known)

        result = curvature.landscape(
            trained.loss_fn,
            trained.params,
            trained.sets["training"],
            directions[:number],
            grid,
            values=values,
            on_point=keep,
        )
        curvature.draw_landscape(result, workdir / f"{name}.png", title="training loss along eigenvectors")


def _write(workdir: pathlib.Path, record: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    metrics.write_json(workdir / SPECTRUM, record)
    with (workdir / "spectrum.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    names = dict.fromkeys(row["matrix"] for row in rows)
    values = {n: np.array([row["eigenvalue"] for row in rows if row["matrix"] == n]) for n in names}
    single = {n: v for n, v in values.items() if n.startswith(_SINGLE)}
    whole = {n: v for n, v in values.items() if n not in single}
    curvature.draw_spectra(whole, workdir / "spectrum.png", title="largest Hessian eigenvalues")
    if single:
        title = "largest Hessian eigenvalues of single images"
        curvature.draw_spectra(single, workdir / "examples.png", title=title)
    epochs = workdir / metrics.METRICS
    if epochs.exists():
        draw_tracked(workdir / "tracked.png", metrics.read_lines(epochs), title="by epoch")
