"""Settings are declared once: their types, choices and help become flags, and checks of what Python gives."""

import subprocess
import sys
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from absl import flags

from hessabs.cli.flags import config_flags, given, parse, read_config
from hessabs.training.fields import check, declared


class Steps(NamedTuple):
    schedule: Annotated[Literal["step", "cosine"], "how the rate goes"] = "step"
    optimizer: Annotated[Literal["sgd", "adamw"] | str, "optimiser"] = "sgd"
    coupling: Annotated[Literal["linear", "sqrt"] | None, "default: the optimiser's"] = None
    lr: Annotated[float, "rate"] = 0.1
    clip: Annotated[float | None, "norm; default: none"] = None
    at: Annotated[tuple[int, ...], "epochs"] = (30, 60)
    factors: Annotated[tuple[float, ...], "one each"] = ()
    seed: Annotated[int, "of all that is drawn"] = 0


class Places(NamedTuple):
    workdir: Annotated[str | None, "folder"] = None
    seed: Annotated[int, "of all that is drawn"] = 0
    overwrite: Annotated[bool, "lose what is there"] = False
    most: Annotated[int | None, "default: all"] = None
    callbacks: Annotated[tuple[str, ...], "names"] = ("csv",)


def read(*argv: str) -> tuple[Steps, Places, Any]:
    values = config_flags(Steps, Places)
    assert not parse(values, "train", argv)
    return read_config(Steps, values), read_config(Places, values), values


def test_what_is_not_typed_has_its_default():
    steps, places, values = read()
    assert (steps, places) == (Steps(), Places())
    assert given(Steps, values) == given(Places, values) == set()


def test_what_is_typed():
    steps, places, values = read(
        "--schedule=cosine",
        "--optimizer=my/opt.py:make",
        "--coupling=sqrt",
        "--lr=8/255",
        "--clip=1",
        "--at=",
        "--factors=1/2,0.25",
        "--seed=0",
        "--most",
        "60_000",
        "--overwrite",
        "--callbacks=csv,cb.py:make",
    )
    assert steps == Steps("cosine", "my/opt.py:make", "sqrt", 8 / 255, 1.0, (), (0.5, 0.25), 0)
    assert type(steps.clip) is float
    assert places == Places(None, 0, True, 60_000, ("csv", "cb.py:make"))
    assert given(Steps, values) == set(Steps._fields)  # its default too, where it was typed
    assert given(Places, values) == {"seed", "overwrite", "most", "callbacks"}


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        ("--schedule=cosin", ("schedule", "one of step, cosine", "'cosin'", "the nearest is 'cosine'")),
        ("--optimizer=adam", ("sgd, adamw, or FILE.py:factory", "'adam'", "'adamw'")),
        ("--optimizer=x.txt:make", ("FILE.py:factory", "'x.txt:make'")),
        ("--coupling=none", ("one of linear, sqrt", "'none'")),
        ("--seed=many", ("seed", "a whole number", "'many'")),
        ("--seed=1.5", ("a whole number", "'1.5'")),
        ("--lr=8/0", ("a number or a fraction such as 8/255", "'8/0'")),
        ("--at=30,x", ("whole numbers separated by commas", "'30,x'")),
        ("--factors=1/x", ("separated by commas", "'1/x'")),
        ("--overwrite=perhaps", ("overwrite", "perhaps")),
    ],
)
def test_what_cannot_be_read(flag, parts):
    with pytest.raises(flags.Error) as caught:
        read(flag)
    for part in parts:
        assert part in str(caught.value)


def test_help_has_type_choices_and_default(capsys):
    assert parse(config_flags(Steps, Places), "train", ["--help"]) is None
    out = capsys.readouterr().out
    assert "--schedule=step|cosine\n      how the rate goes (default: step)" in out
    assert "--optimizer=sgd|adamw|FILE.py:factory\n" in out
    assert "--coupling=linear|sqrt\n      default: the optimiser's\n" in out
    assert "--at=N,N,...\n      epochs (default: 30,60)" in out
    assert "--overwrite=true|false\n      lose what is there (default: false)" in out
    assert "--most=int\n" in out
    assert "--lr=float\n" in out


def test_types_and_help_of_several():
    assert list(declared(Steps, Places)) == [*Steps._fields, "workdir", "overwrite", "most", "callbacks"]
    assert declared(Steps)["at"].kind is tuple
    assert declared(Places)["most"].kind is int
    assert declared(Steps, Places)["workdir"].help == "folder"


@pytest.mark.parametrize(
    "other", [Annotated[int, "another text"], Annotated[int | None, "of all that is drawn"]], ids=str
)
def test_a_field_of_two_settings_is_the_same_or_refused(other):
    class Again(NamedTuple):
        seed: other = 0

    with pytest.raises(ValueError, match="`seed` must be declared the same in Steps and in Again"):
        config_flags(Steps, Again)


@pytest.mark.parametrize(("hint", "what"), [(int, "Annotated with its help"), (Annotated[dict, "x"], "dict")])
def test_a_field_that_can_be_no_flag(hint, what):
    class Bad(NamedTuple):
        x: hint = 0

    with pytest.raises(ValueError, match=rf"`x` of Bad .*{what}"):
        declared(Bad)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            Steps(schedule="cosin"),
            r"`schedule` must be one of step, cosine, got 'cosin'; the nearest is 'cosine'",
        ),
        (Steps(optimizer="adam"), r"`optimizer` must be sgd, adamw, or FILE.py:factory, got 'adam'"),
        (Steps(schedule=None), r"`schedule` must be one of step, cosine, got None"),
        (Steps(coupling=2), r"`coupling` must be one of linear, sqrt, got 2"),
        (Steps(lr="0.1"), r"`lr` must be a number .* got '0.1'"),
        (Steps(clip="x"), r"`clip` must be a number .* or None, got 'x'"),
        (Steps(seed=True), r"`seed` must be a whole number, got True"),
        (Steps(at=30), r"`at` must be a tuple of whole numbers, got 30"),
        (Steps(at=(1.5,)), r"`at` must be a tuple of whole numbers, got \(1.5,\)"),
        (Places(overwrite=1), r"`overwrite` must be true or false, got 1"),
    ],
    ids=str,
)
def test_settings_of_python_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        check(settings)


def test_settings_of_python_that_fit():
    check(Steps(optimizer="a.py:b", lr=1, clip=None, at=(1, 2)))
    check(Places(workdir="x", most=3))


def test_flags_are_there_before_jax():
    code = "import sys, hessabs.cli.flags; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
