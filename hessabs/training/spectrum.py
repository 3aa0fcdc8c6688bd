"""The spectrum of a trained run: what ``hessabs spectrum`` computes and writes.

Files in the folder of the run: ``spectrum.json`` (all numbers), ``spectrum.csv`` (a line for each eigenvalue),
``spectrum.png``, and with the options ``density.png``, ``landscape.json``, ``line.png`` and ``plane.png``. A
landscape that was interrupted goes on at its next point.
"""

import csv
import json
import pathlib
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from hessabs import curvature, models, trees
from hessabs.training import checkpoint, metrics
from hessabs.training.config import Config
from hessabs.training.losses import evaluation_loss, scale_images
from hessabs.training.progress import Progress
from hessabs.training.setup import set_up
from hessabs.training.track import last_layer
from hessabs.typing import LossFn, Params

SPECTRUM = "spectrum.json"


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
    start_key, example_key, density_key = jax.random.split(jax.random.key(options.seed), 3)
    start = trees.normal_like(start_key, trained.params)
    rows: list[dict[str, Any]] = []
    tops = {}
    for name in trained.sets:
        with Progress(_num_examples(trained, name) * options.max_matvecs) as bar:
            operator = _data_set_operator(trained, name, bar)
            tops[name] = curvature.eigsh(operator, start, options.top, **_solver(options))
        rows += _rows(name, tops[name])
        if options.block:
            block = curvature.restrict(_data_set_operator(trained, name), trained.params, trained.head)
            block_start, _ = trees.partition(start, trained.head)
            size = sum(x.size for x in jax.tree.leaves(block_start))
            result = curvature.eigsh(block, block_start, min(options.top, size), **_solver(options))
            rows += _rows(f"{name}, last layer", result)
    if options.per_example:
        rows += _single_examples(trained, options, example_key, start)
    record: dict[str, Any] = {**options._asdict(), "eigenvalues": rows}
    if options.density:
        record["density"] = _density(trained, options, density_key, workdir)
    _write(workdir, record, rows)
    if options.landscape:
        _landscape(trained, tops["training"], workdir)
    return record


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
    if options.block not in ("", "last"):
        raise ValueError(f'`block` must be "last" or empty, got {options.block!r}.')


def _load(workdir: pathlib.Path, options: Options) -> _Trained:
    summary = workdir / metrics.SUMMARY
    if not summary.exists():
        raise FileNotFoundError(f"{workdir} holds no finished run ({metrics.SUMMARY}): train one there first.")
    fields = json.loads(summary.read_text())
    config = Config(**{name: fields[name] for name in Config._fields if name in fields})
    run = set_up(
        config._replace(lr_decay_epochs=tuple(config.lr_decay_epochs), grow_epochs=tuple(config.grow_epochs))
    )
    params, model_state = checkpoint.load_params(workdir, run.state.params, run.state.model_state)
    loss = evaluation_loss(models.create(config.model, run.dataset.num_classes), model_state)
    sets = {
        name: _cut(split, options)
        for name, split in (("training", run.dataset.train), ("test", run.dataset.test))
    }
    return _Trained(Partial(_scaled_loss, loss), params, last_layer(params, run.dataset.num_classes), sets)


def _scaled_loss(loss_fn: LossFn, params: Params, batch: Any) -> jax.Array:
    return loss_fn(params, scale_images(batch))


def _cut(split: dict[str, np.ndarray], options: Options) -> list[dict[str, np.ndarray]]:
    number = min(options.num_examples or len(split["label"]), len(split["label"]))
    whole = {**{name: array[:number] for name, array in split.items()}, "weight": np.ones(number, np.float32)}
    return [
        {name: array[i : i + options.batch_size] for name, array in whole.items()}
        for i in range(0, number, options.batch_size)
    ]


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
    trained: _Trained, options: Options, key: jax.Array, start: Params
) -> list[dict[str, Any]]:
    order = jax.random.permutation(key, _num_examples(trained, "training"))
    chosen = np.asarray(order)[: options.per_example]
    rows = []
    for index in chosen:
        batch = trained.sets["training"][index // options.batch_size]
        place = index % options.batch_size
        one = {name: array[place : place + 1] for name, array in batch.items()}
        operator = curvature.hessian(trained.loss_fn, trained.params, one, linearize=True)
        rows += _rows(
            f"training image {index}", curvature.eigsh(operator, start, options.top, **_solver(options))
        )
    return rows


def _density(trained: _Trained, options: Options, key: jax.Array, workdir: pathlib.Path) -> dict[str, Any]:
    operator = _data_set_operator(trained, "training")
    size = sum(x.size for x in jax.tree.leaves(trained.params))
    density = curvature.spectral_density(operator, trained.params, key, num_probes=4, num_iters=min(60, size))
    curvature.draw_density(density, workdir / "density.png", title="training set")
    return {name: np.asarray(value).tolist() for name, value in density._asdict().items()}


def _landscape(trained: _Trained, top: Any, workdir: pathlib.Path) -> None:
    path = workdir / "landscape.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    signature = float(top.eigenvalues[0])
    if known.get("eigenvalue") != signature:
        known = {"eigenvalue": signature}
    count = min(2, len(top.eigenvalues))
    directions = [jax.tree.map(lambda x, i=i: x[i], top.eigenvectors) for i in range(count)]
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
    curvature.draw_spectra(values, workdir / "spectrum.png", title="largest Hessian eigenvalues")
