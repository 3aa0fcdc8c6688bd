"""The examples run and say what they are to say; each file of examples/ has its check here."""

import pathlib
import runpy
import sys

import pytest

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def check_batch_norm(lines, folder):
    assert lines[0] == "  8192 examples: now batches of 64, fraction 0.25"
    assert lines[-2] == " 32768 examples: now batches of 256, fraction 0.0"
    clean, robust = (float(part.split()[-1]) for part in lines[-1].split(" %")[:2])
    assert clean > 95
    assert robust > 75


def check_cifar10(lines, folder):
    assert lines[2].startswith("| absa")
    assert (folder / "run" / "curves.png").is_file()


def check_data_parallel(lines, folder):
    sizes, eigenvalues, apart = lines
    assert sizes == "4 devices: batches 64 to 256"
    assert min(map(float, eigenvalues.split()[1:])) > 0
    assert float(apart.removeprefix("largest difference from one device: ")) < 1e-5


def check_demo(lines, folder):
    rows = [line for line in lines if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["fixed batch (BL)", "ABSA"]
    assert "times fewer updates" in lines[-2]
    assert lines[-1] == f"picture: {folder / 'run' / 'curves.png'}"
    assert (folder / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    for method in ("bl", "absa"):
        assert (folder / "run" / method / "summary.json").is_file()


def check_optax_chain(lines, folder):
    sizes = [int(line.rsplit(" ", 1)[1]) for line in lines[:-1]]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 128  # it grew to its maximum
    assert float(lines[-1].removeprefix("final loss ")) < 0.6  # 0.69 is guessing


def check_top_eigenvalue(lines, folder):
    values = [float(line.split()[0]) for line in lines[1:11]]
    assert values == sorted(values, reverse=True)
    assert lines[11].endswith("passes over 1797 images, all converged: True")
    layers = {line.split()[0]: float(line.split()[2]) for line in lines[-2:]}
    assert 0 < max(layers.values()) <= values[0]  # a block's eigenvalue is never the larger one


SLOW = {path.name for path in EXAMPLES.glob("*.py")} - {"optax_chain.py"}


def check_transformer_adamw(lines, folder):
    sizes = [int(line.split("batch ")[1].split(",")[0]) for line in lines[:-1]]
    assert sizes == sorted(set(sizes))
    assert (sizes[0], len(sizes) > 2) == (8, True)
    before, after = map(float, lines[-1].removeprefix("held-out loss ").split(" nats")[0].split(" -> "))
    assert 4.5 < before < 4.7  # ln 96: nothing is known of the next character
    assert after < 3.5


FLAGS = {
    "cifar10.py": ("--dataset=digits", "--epochs=1"),
    "demo.py": ("--epochs=2",),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.name, marks=[pytest.mark.slow] if path.name in SLOW else [])
        for path in sorted(EXAMPLES.glob("*.py"))
    ],
)
def test_example(name, tmp_path, monkeypatch, capsys):
    flags = [*FLAGS[name], f"--workdir={tmp_path / 'run'}"] if name in FLAGS else []
    monkeypatch.setattr(sys, "argv", [name, *flags])
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    except SystemExit as end:
        assert not end.code  # noqa: PT017
    globals()[f"check_{name.removesuffix('.py')}"](capsys.readouterr().out.splitlines(), tmp_path)
