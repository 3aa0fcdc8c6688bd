"""Docstrings as they are written in this library, made what the site's parser reads. No text is changed.

* ``Example:`` is the section that the parser calls ``Examples:``; ``References:`` is a paragraph.
* ``matvec, loop: As in ...`` stands for two arguments.
* What a comment, or ``Annotated``, says of a field of a class is its description.
* A public name wins over a module of the same name (``curvature.eigsh`` is the function).
"""

import ast
import io
import re
import tokenize
from typing import Any

import griffe

_SEVERAL = re.compile(r"^( +)(\*{0,2}\w+(?:, \*{0,2}\w+)+):(.*)$")
_SECTIONS = ("Args:", "Returns:", "Raises:", "Yields:", "Warns:", "Attributes:")


class Docstrings(griffe.Extension):
    """See the module."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Go through a package that has been loaded."""
        _describe(pkg, set())
        _expose(pkg)  # modules of the name of what they export are out of reach from here on


def _expose(package: griffe.Module) -> None:
    found = []
    for module in _modules(package):
        for name in map(str, module.exports or ()):
            path = module.imports.get(name)
            if path is not None and path != f"{module.path}.{name}":
                found.append((module, name, _target(package, path)))
    for module, name, target in found:
        # Not through `module[name] =`, which would merge the two.
        module.members[name] = griffe.Alias(name, target, parent=module)


def _target(package: griffe.Module, path: str) -> Any:
    member = package[path.split(".")[1:]]
    while member.is_alias:
        member = package[member.target_path.split(".")[1:]]
    return member


def _modules(module: griffe.Module) -> list[griffe.Module]:
    below = [m for m in module.members.values() if not m.is_alias and m.is_module]
    return [module, *(each for one in below for each in _modules(one))]  # type: ignore[arg-type]


def _describe(thing: Any, seen: set[int]) -> None:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if thing.docstring is not None:
        thing.docstring.value = rewrite(thing.docstring.value)
    if thing.is_class:
        _add_fields(thing)
    if thing.is_module or thing.is_class:
        for member in list(thing.members.values()):
            if not member.is_alias:
                _describe(member, seen)


def rewrite(text: str) -> str:
    """Rewrite one docstring.

    Example:
      >>> print(rewrite("Go.\\n\\nArgs:\\n  a, b: As of x.\\n\\nExample:\\n  >>> 1"))
      Go.
      <BLANKLINE>
      Args:
        a: As of x.
        b: As of x.
      <BLANKLINE>
      Examples:
        >>> 1
    """
    lines, made, section = text.splitlines(), [], ""
    position = 0
    while position < len(lines):
        line = lines[position]
        position += 1
        if line.rstrip() in (*_SECTIONS, "Example:", "References:"):
            section = line.rstrip()
        if line.rstrip() == "Example:":
            made.append("Examples:")
        elif line.rstrip() == "References:":
            made.append("**References.**")
        elif section == "References:" and line.strip():
            made.append(line.strip())
        elif section == "Args:" and (match := _SEVERAL.match(line)):
            indent, names, rest = match.groups()
            more = []
            while position < len(lines) and lines[position].startswith(indent + " "):
                more.append(lines[position])
                position += 1
            for name in names.split(", "):
                made += [f"{indent}{name}:{rest}", *more]
        elif line.rstrip().endswith("::"):
            made.append(line.rstrip()[:-1])
        else:
            made.append(line)
    return "\n".join(made)


def _add_fields(thing: Any) -> None:
    fields = []
    comments, alone = _comments(thing)
    for member in thing.members.values():
        if not member.is_attribute or member.name.startswith("_") or member.docstring is not None:
            continue
        if "property" in member.labels or member.lineno is None:
            continue
        inside = [comments[n] for n in range(member.lineno, member.endlineno + 1) if n in comments]
        above, line = [], member.lineno - 1
        while line in alone:
            above.insert(0, comments[line])
            line -= 1
        if member.annotation is not None:
            text = " ".join([*above, *inside]) or _annotated(member)
            fields.append(f"  {member.name}: {text or '&nbsp;'}")
    known = thing.docstring is not None and "Attributes:" in thing.docstring.value
    if fields and not known:
        text = "" if thing.docstring is None else thing.docstring.value
        written = "\n".join([text, "", "Attributes:", *fields]).strip("\n")
        if thing.docstring is None:
            thing.docstring = griffe.Docstring(written, parent=thing)
        else:
            thing.docstring.value = written


def _annotated(member: Any) -> str:
    """Take the text out of ``Annotated[type, text]``, and leave the type."""
    kind = ast.parse(str(member.annotation), mode="eval").body
    if not (isinstance(kind, ast.Subscript) and getattr(kind.value, "id", None) == "Annotated"):
        return ""
    assert isinstance(kind.slice, ast.Tuple)
    member.annotation = member.annotation.slice.elements[0]
    text = kind.slice.elts[1]
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    return "".join(part.value if isinstance(part, ast.Constant) else ast.unparse(part) for part in parts)


def _comments(thing: Any) -> tuple[dict[int, str], set[int]]:
    """Find the comments of a file by line, and the lines that hold nothing else."""
    lines = thing.lines_collection[thing.filepath]
    comments, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO("\n".join(lines) + "\n").readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    return comments, alone
