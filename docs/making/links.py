"""The site carries pages that lie outside of docs/, and links to files lead to their pages where there are any.

In the sources every link is a path to a file, so that it works in a checkout, too. A link to a file that the
site does not carry becomes plain text there.
"""

import os
import pathlib
import re
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "tests/README.md")
FOLDERS = ("experiments/results", "experiments/benchmarks", "experiments/frontier", "experiments/scaling",
           "experiments/theorem2", "experiments/robust_least_squares", "experiments/trust_region")  # fmt: skip
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s#]*)(#[^()\s]*)?\)")
_FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def carried() -> dict[str, pathlib.Path]:
    """List the files of the site that lie outside of docs/, by their place in it."""
    paths = [ROOT / page for page in PAGES]
    for folder in FOLDERS:
        found = (path for path in (ROOT / folder).rglob("*") if path.suffix in (".md", ".png"))
        paths += [path for path in found if path.name != "FINDINGS.md"]  # README.md holds it, too
    return {path.relative_to(ROOT).as_posix(): path for path in paths}


def on_files(files: Files, config: Any) -> Files:
    """Add what the site carries, and a page for each example."""
    for place, path in carried().items():
        files.append(File.generated(config, place, abs_src_path=str(path)))
    for path in sorted(p for p in (ROOT / "examples").iterdir() if p.suffix in (".py", ".sh")):
        text = f"# {path.name}\n\n```{path.suffix[1:]}\n{path.read_text()}```\n"
        files.append(File.generated(config, f"examples/{path.stem}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Let links lead to pages of the site."""
    place = page.file.src_uri
    outside = place in carried()

    def follow(match: re.Match[str]) -> str:
        picture, text, target, anchor = match.groups()
        if not target or re.match(r"\w+:", target):
            return match[0]
        path = os.path.normpath(os.path.join(os.path.dirname(place if outside else f"docs/{place}"), target))
        uri = _page(path, files)
        if uri is not None:
            return f"{picture}[{text}]({os.path.relpath(uri, os.path.dirname(place) or '.')}{anchor or ''})"
        if (ROOT / path).exists() and not path.startswith("docs/"):
            return text
        return match[0]

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(follow, part) for part in parts)


def _page(path: str, files: Files) -> str | None:
    example = re.sub(r"^examples/(\w+)\.(?:py|sh)$", r"examples/\1.md", path)
    for uri in (path.removeprefix("docs/"), example, f"{path}/README.md"):
        if files.get_file_from_path(uri) is not None:
            return uri
    return None
