"""What a config of experiments/configs says, checked: the runs of a grid by name.

A config is a Python file with a docstring and three names: ``BASE`` (the settings that all runs share),
``GRID`` (the name of a run to the settings of its own) and ``SEEDS``. Settings are the flags of
``hessabs train``. ``ALONE = True`` says that each run is to have the machine to itself, so that its seconds
count. ``SLIDES`` says which table of the slides it is: data set, network, training examples.
"""

import difflib
import importlib.util
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments import training

CONFIGS = pathlib.Path(__file__).parent / "configs"
RESULTS = pathlib.Path(__file__).parent / "results"
WORKDIRS = pathlib.Path(__file__).parents[1] / "runs"
NEEDED = ("BASE", "GRID", "SEEDS")
NAMES = (*NEEDED, "ALONE", "SLIDES")


class Grid(NamedTuple):
    """The runs of a config."""

    name: str
    title: str  # the first line of the docstring
    runs: dict[str, dict[str, Any]]  # "LABEL/seedN" to its settings, all of a seed before the next
    alone: bool = False  # whether each run has the machine to itself
    slides: tuple[str, str, int] | None = (
        None  # (data set, network, training examples) of a table of the slides
    )

    @property
    def labels(self) -> list[str]:
        """The names of the runs without their seeds."""
        return list(dict.fromkeys(name.rpartition("/")[0] for name in self.runs))


def names() -> list[str]:
    """List the committed configs."""
    return sorted(path.stem for path in CONFIGS.glob("*.py"))


def find(arguments: Sequence[str]) -> pathlib.Path:
    """Find the config that a command line names: a file of experiments/configs without suffix, or a path."""
    if len(arguments) == 1 and arguments[0] in names():
        return CONFIGS / f"{arguments[0]}.py"
    if len(arguments) == 1 and arguments[0].endswith(".py") and pathlib.Path(arguments[0]).is_file():
        return pathlib.Path(arguments[0])
    got = " ".join(arguments) or "none"
    raise ValueError(f"name one config, a path or one of {', '.join(names())}; got {got}.")


def load(path: pathlib.Path) -> Grid:
    """Read a config; ValueError if a name or setting is missing, not known, or out of its range."""
    spec = importlib.util.spec_from_file_location(f"experiments.configs.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = [name for name in vars(module) if name.isupper() and not name.startswith("_")]
    for name in found:
        if name not in NAMES:
            raise ValueError(f"{path.name} has the unknown name {name!r}{_hint(name, NAMES)}")
    for name in NEEDED:
        if name not in found:
            raise ValueError(f"{path.name} must define {name}.")
    seeds = tuple(module.SEEDS)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"{path.name}: SEEDS must be one or more different seeds, got {seeds}.")
    for label, own in module.GRID.items():
        _check(f"{path.name}, {label!r}", {**module.BASE, **own, "seed": seeds[0]})
    return Grid(
        path.stem,
        (module.__doc__ or path.stem).strip().splitlines()[0],
        {
            f"{label}/seed{seed}": {**module.BASE, **own, "seed": seed}
            for seed in seeds
            for label, own in module.GRID.items()
        },
        getattr(module, "ALONE", False),
        getattr(module, "SLIDES", None),
    )


def _check(where: str, settings: Mapping[str, Any]) -> None:
    for name in settings:
        if name not in training.SETTINGS:
            raise ValueError(f"{where} has the unknown setting {name!r}{_hint(name, training.SETTINGS)}")
    try:
        training.check(settings)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _hint(name: str, candidates: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, candidates, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(candidates)}."
