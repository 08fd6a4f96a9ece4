"""Makes docs/api.md of the docstrings of what is public: `make docs`, or python tools/api.py [--check] [FILE]"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe
from griffe2md import ConfigDict, render_object_docs

ROOT = Path(__file__).parents[1]
HEAD = """# API

What may be imported from `tmem`; everything else in the package may move. Made from the docstrings by `make docs`.
"""
CONFIG: ConfigDict = {
    "heading_level": 3,
    "members_order": "source",
    "show_if_no_docstring": False,
    "show_object_full_path": False,
    "show_root_full_path": False,
    "show_root_members_full_path": False,
    "show_signature_annotations": True,
    "summary": False,
}


def public(module: griffe.Object) -> Iterator[griffe.Object]:
    """What the module's `__all__` names, in its order; constants are in the module's docstring."""
    for name in module.exports:
        found = module[name]
        if found.is_module and name in found.members:  # a function in a file of its own name
            found = found[name]
        if not found.is_attribute:
            yield found.final_target if found.is_alias else found


def plain(thing: griffe.Object) -> griffe.Object:
    """A dataclass whose fields are made by `_option(default, ...)` shows the defaults alone."""
    for parameter in thing.parameters if thing.is_class else ():
        made = parameter.default
        if isinstance(made, griffe.ExprCall) and str(made.function) == "_option":
            given = [str(a) for a in made.arguments if not isinstance(a, griffe.ExprKeyword)]
            parameter.default = given[0] if given else "None"
    return thing


def section(title: str, module: griffe.Object) -> str:
    things = list(public(module))
    parts = [f"## {title}", module.docstring.value]
    parts += [render_object_docs(plain(thing), CONFIG).strip() for thing in things if not thing.is_module]
    parts += [section(f"{title}.{thing.name}", thing) for thing in things if thing.is_module]
    return "\n\n".join(parts)


def page() -> str:
    loader = griffe.GriffeLoader(search_paths=[ROOT], docstring_parser=None)
    package = loader.load("tmem")
    loader.resolve_aliases()
    return f"{HEAD}\n{section('tmem', package)}\n"


def main(words: list[str] | None = None) -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("file", nargs="?", type=Path, default=ROOT / "docs" / "api.md", help="[docs/api.md]")
    asked.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file is not what would be made")
    chosen, made = asked.parse_args(words), page()
    if chosen.check:
        return int(not chosen.file.is_file() or chosen.file.read_text(encoding="utf-8") != made)
    chosen.file.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
