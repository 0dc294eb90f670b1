"""The source files of the user's own modules that a recipe runs: is the code still that with which a run began?

Counted are the modules that `--allow-import` gives leave for, and those that they import themselves, wherever these
lie, except for the standard library and installed packages without leave: a new release of a library is no change of
one's own code. What is imported only once a function is called is found by reading the source; nothing is imported
here.
"""

import ast
import hashlib
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from hyperopt_cli.recipe.names import has_leave

_PACKAGE = Path(__file__).parents[1]


def sources(allow: Sequence[str]) -> dict[str, str]:
    """Returns the SHA-256 digest of each file of one's own code, by the name of its module.

    Args:
        allow: patterns of modules as `--allow-import` takes them; what of them is imported by now is where it starts.
    """
    found: dict[str, str] = {}
    waiting = [name for name in list(sys.modules) if has_leave(name, allow)]
    while waiting:
        name = waiting.pop()
        file = None if name in found else _file(name)
        if file is None or file.is_relative_to(_PACKAGE):
            continue
        is_installed = not _installed().isdisjoint(file.parents)
        root = name.partition(".")[0]
        if is_installed and not any(pattern.partition(".")[0] == root for pattern in allow):
            continue
        try:
            content = file.read_bytes()
        except OSError:  # a module that was made by other means than a file
            continue
        found[name] = hashlib.sha256(content).hexdigest()
        if not is_installed:
            waiting += _imported(name, content)
    return dict(sorted(found.items()))


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Returns the files, relative to where their packages lie, whose modules are in both and differ."""
    return [relative_file(name) for name in before if name in now and before[name] != now[name]]


def relative_file(module: str) -> str:
    """Returns `own.py`, `package/part.py` or `package/__init__.py` for the name of a module."""
    path, file = module.replace(".", "/"), _file(module)
    if file is None:
        return path
    return f"{path}/{file.name}" if file.stem == "__init__" else f"{path}{file.suffix}"


def _file(module: str) -> Path | None:
    parent = module.rpartition(".")[0]
    if parent and parent not in sys.modules:  # looking it up would import its parent
        return None
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):  # __main__, or an attribute that looked like a module
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


@cache
def _installed() -> frozenset[Path]:
    """Returns the folders of the standard library and of installed packages."""
    paths = (sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib"))
    return frozenset(map(Path, (*paths, *site.getsitepackages(), site.getusersitepackages())))


def _imported(module: str, content: bytes) -> Iterator[str]:
    """Yields the names that a source file imports, at the top or within functions; some may be no modules."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # compiled code
        return
    file = _file(module)
    package = module if file is not None and file.stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            try:
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # a relative one that leaves its package
                continue
            for name in (base, *(f"{base}.{alias.name}" for alias in node.names)):
                yield from _with_parents(name)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))
