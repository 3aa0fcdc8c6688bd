"""``python -m hessabs``: the command line without its script."""

from hessabs.cli.main import run

if __name__ == "__main__":
    run()
