"""Declarations of settings: a NamedTuple whose fields are ``Annotated`` with their help, each with a default.

After the help may stand a range of ``hessabs.checks``, ``"lie in [0, 1)"`` say.

A field holds a ``str``, ``int``, ``float``, ``bool``, a ``Literal`` of strings, or a ``tuple`` of one of these
(``tuple[int, ...]``), each also ``| None``. ``Literal[...] | str`` is a choice or a ``FILE.py:factory``.
"""

import difflib
import numbers
import re
import types
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from hessabs.checks import require_ranges

_WANTED: dict[type, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number or a fraction such as 8/255", "numbers or fractions such as 8/255"),
    bool: ("true or false", "true or false"),
    str: ("text", "texts"),
}


class Field(NamedTuple):
    """One setting as it was declared."""

    name: str
    kind: type  # str, int, float, bool or tuple
    item: type  # of a tuple, what it holds; else the kind
    choices: tuple[str, ...]  # of a Literal
    open: bool  # whether FILE.py:factory is a choice too
    optional: bool  # whether None is a value
    default: Any
    help: str

    @property
    def wanted(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            names = ", ".join(self.choices)
            return f"{names}, or FILE.py:factory" if self.open else f"one of {names}"
        one, many = _WANTED[self.item]
        return f"{many} separated by commas" if self.kind is tuple else one


def declared(*settings_types: Any) -> dict[str, Field]:
    """List the fields of some settings by name; one that stands in two of them is to be declared the same."""
    result: dict[str, Field] = {}
    home: dict[str, str] = {}
    for settings_type in settings_types:
        for name, hint in get_type_hints(settings_type, include_extras=True).items():
            field = _field(settings_type, name, hint)
            if result.setdefault(name, field) != field:
                raise ValueError(
                    f"`{name}` must be declared the same in {home[name]} and in {settings_type.__name__}, got "
                    f"{result[name]} and {field}."
                )
            home.setdefault(name, settings_type.__name__)
    return result


def from_text(field: Field, text: str) -> Any:
    """Read what was typed for a field.

    Example:
      >>> from_text(Field("at", tuple, int, (), False, False, (), "epochs"), "30,60")
      (30, 60)
    """
    try:
        if field.kind is tuple:
            return tuple(_item(field.item, part.strip()) for part in text.split(",") if part.strip())
        value = _item(field.kind, text)
    except (ValueError, KeyError, ZeroDivisionError):
        raise ValueError(f"{field.wanted} must be given, got {text!r}.") from None
    if field.choices and not _is_choice(field, value):
        raise ValueError(f"it must be {field.wanted}, got {text!r}{nearest(text, field.choices)}.")
    return value


def check(settings: Any) -> None:
    """Check that each field of settings made in Python holds what was declared: type, choice and range."""
    for name, field in declared(type(settings)).items():
        value = getattr(settings, name)
        if value is None and field.optional:
            continue
        if field.kind is tuple:
            fits = isinstance(value, tuple) and all(_is_a(field.item, part) for part in value)
        else:
            fits = _is_a(field.kind, value)
        if field.choices and not (fits and _is_choice(field, value)):
            hint = nearest(value, field.choices) if isinstance(value, str) else ""
            raise ValueError(f"`{name}` must be {field.wanted}, got {value!r}{hint}.")
        if not fits:
            wanted = f"a tuple of {_WANTED[field.item][1]}" if field.kind is tuple else field.wanted
            raise ValueError(f"`{name}` must be {wanted}{' or None' * field.optional}, got {value!r}.")
    require_ranges(settings)


def changed(settings: Any) -> set[str]:
    """List the fields that do not hold their default."""
    defaults = settings._field_defaults
    return {name for name, value in settings._asdict().items() if value != defaults[name]}


def is_factory(text: str) -> bool:
    """Tell whether a setting is ``FILE.py:factory`` and no name of ours."""
    return re.fullmatch(r".+\.py:\w+", text) is not None


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known names a wrong one is like: "; the nearest is 'adamw'", or nothing.

    Example:
      >>> nearest("adam", ["sgd", "adamw", "lion"])
      "; the nearest is 'adamw'"
    """
    close = difflib.get_close_matches(name, list(known), n=3)
    if not close:
        return ""
    return f"; the nearest {'is' if len(close) == 1 else 'are'} {', '.join(map(repr, close))}"


def _field(settings_type: Any, name: str, hint: Any) -> Field:
    where = f"`{name}` of {settings_type.__name__}"
    help_text = next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, str)), None)
    if help_text is None or name not in settings_type._field_defaults:
        raise ValueError(f"{where} must be Annotated with its help and have a default.")
    hint = get_args(hint)[0]
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    optional = type(None) in options
    choices = tuple(name for option in options if get_origin(option) is Literal for name in get_args(option))
    kinds = [option for option in options if option is not type(None) and get_origin(option) is not Literal]
    kind = str if choices else (get_origin(kinds[0]) or kinds[0])
    item = get_args(kinds[0])[0] if kind is tuple else kind
    if len(kinds) > 1 or (choices and kinds not in ([], [str])) or item not in _WANTED:
        raise ValueError(
            f"{where} must hold text, a whole number, a number, a bool, a Literal, or a tuple of one of these, "
            f"got the type {hint}."
        )
    default = settings_type._field_defaults[name]
    return Field(name, kind, item, choices, choices != () and kinds == [str], optional, default, help_text)


def _item(kind: type, text: str) -> Any:
    if kind is float:
        top, slash, bottom = text.partition("/")
        return float(top) / float(bottom) if slash else float(text)
    if kind is bool:
        return {"true": True, "false": False}[text.strip().lower()]
    return kind(text)


def _is_choice(field: Field, value: str) -> bool:
    return value in field.choices or (field.open and is_factory(value))


def _is_a(kind: type, value: Any) -> bool:
    wanted = {int: numbers.Integral, float: numbers.Real}.get(kind, kind)
    return isinstance(value, wanted) and (kind is bool or not isinstance(value, bool))
