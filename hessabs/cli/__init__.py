"""The command line of the package; see ``hessabs.cli.main``."""

from hessabs.cli.main import main, run

__all__ = ["main", "run"]
