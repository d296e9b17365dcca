"""Imports go one way: down the layers, and never between client and server."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_PACKAGE = Path(__file__).parents[2] / "asyncsandbox"

# From the floor up. A module imports from layers below its own; a folder counts as one module here.
_CLIENT = (
    ("errors", "_clock", "_version"),
    ("models", "_tasks"),
    ("events",),
    ("backoff", "protocol", "embedded"),
    ("sockets", "pacing"),
    ("transport",),
    ("control", "webhooks"),
    ("agent",),
    ("streaming",),
    ("terminal", "watching"),
    ("tracking", "capture"),
    ("results", "sweeping"),
    ("watcher",),
    ("jobs", "adoption"),
    ("waiting", "starting"),
    ("groups", "files", "commands", "environment", "callbacks"),
    ("sandbox",),
    ("client",),
    ("testing", "cli"),
    ("__init__", "__main__"),
)
_SERVER = (
    (
        "__init__",
        "admission",
        "extras",
        "machine",
        "nest",
        "rates",
        "refusals",
        "richresults",
        "tally",
        "launcher",
    ),
    ("config", "records", "keys", "paths", "templates", "spool"),
    ("jobtable", "sandboxtable", "deliveries", "engine"),
    ("store",),
    ("ledger",),
    ("outputs",),
    ("jobs", "webhooks"),
    ("sandboxes",),
    ("state",),
    ("wire", "handling"),
    ("exposition", "ratelimits"),
    ("sockets", "following"),
    ("streaming", "terminal", "watching"),
    (
        "absent",
        "agent",
        "callbacks",
        "control",
        "environment",
        "files",
        "metrics",
        "openapi",
        "processes",
        "running",
    ),
    ("app",),
    ("main",),
    ("embedded",),
    ("__main__",),
)
# What both sides share. Everything else of the client is closed to the server.
_FLOOR = {"errors", "models", "backoff", "protocol", "_clock", "_version"}
# The supervisor is a process of its own: it starts fast and holds little because it imports nothing but these.
_SUPERVISOR = {
    "bootstrap",
    "channel",
    "load",
    "procfs",
    "pump",
    "ring",
    "sink",
    "spawn",
    "supervisor",
    "terminal",
    "timers",
}
# Which of our modules may import what comes from outside; what is not here may be imported anywhere.
_ONLY_IN = {
    "typer": {"cli"},
    "rich": {"cli"},
    "sqlite3": {"server"},
    "psutil": {"server"},
    "prometheus_client": {"server"},
    "aiohttp": {"sockets", "transport", "webhooks", "server"},
}


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below `node` that are there when the program runs."""
    for child in ast.iter_child_nodes(node):
        if not _is_for_types(child):
            yield child
            yield from _statements(child)


def _imports(source: str) -> Iterator[str]:
    """Yield the full name of every module, or thing in a module, that `source` imports."""
    for node in _statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import: {ast.unparse(node)}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _name(file: Path) -> str:
    return ".".join(file.relative_to(_PACKAGE).with_suffix("").parts)


_SOURCES = {_name(file): file.read_text() for file in sorted(_PACKAGE.rglob("*.py"))}


def _module(full: str) -> str:
    """Return the module of ours that holds `full`, named from the package down."""
    parts = full.split(".")[1:]
    while parts:
        for name in (".".join(parts), ".".join([*parts, "__init__"])):
            if name in _SOURCES:
                return name
        parts.pop()
    return "__init__"


def _ours(source: str) -> set[str]:
    return {_module(full) for full in _imports(source) if full.split(".")[0] == "asyncsandbox"}


def _unit(module: str) -> tuple[str, str]:
    """Return the side of a module and what it counts as there."""
    parts = module.split(".")
    return ("server", parts[1]) if parts[0] == "server" else ("client", parts[0])


_RANKS = {
    (side, unit): rank
    for side, layers in (("client", _CLIENT), ("server", _SERVER))
    for rank, layer in enumerate(layers)
    for unit in layer
}


def _wrong(module: str, imported: str) -> str | None:
    """Return what is wrong with an import, None when nothing is."""
    unit, target = _unit(module), _unit(imported)
    if unit == target:
        return None
    if unit[0] == target[0]:
        return None if _RANKS[target] < _RANKS[unit] else "is not in a layer below"
    if unit[0] == "server":
        return None if target[1] in _FLOOR else "is the client's"
    return None if module == "cli.serve" else "is the server's"


def test_every_module_has_a_layer() -> None:
    """A new module is put where it belongs; one that is gone is taken out."""
    assert {_unit(module) for module in _SOURCES} == set(_RANKS)


@pytest.mark.parametrize("module", _SOURCES)
def test_imports_go_down_the_layers(module: str) -> None:
    """No module imports its own layer, one above, or the other side."""
    wrong = {name: why for name in _ours(_SOURCES[module]) if (why := _wrong(module, name))}
    assert not wrong


def test_no_import_leads_back() -> None:
    """Not even inside a folder does a chain of imports come back to where it began."""
    graph = {module: _ours(source) - {module} for module, source in _SOURCES.items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_the_supervisor_imports_only_the_standard_library() -> None:
    """The process that every sandbox has imports nothing but its own few files."""
    allowed = {f"server.launcher.{name}" for name in _SUPERVISOR}
    for module in allowed:
        assert _ours(_SOURCES[module]) <= allowed, module
        roots = {full.split(".")[0] for full in _imports(_SOURCES[module])} - {"asyncsandbox"}
        assert roots <= sys.stdlib_module_names, module


@pytest.mark.parametrize("library", _ONLY_IN)
def test_a_library_is_imported_where_it_belongs(library: str) -> None:
    """One module does the client's network I/O, and only the command line needs the extra `cli`."""
    users = {
        module.split(".")[0]
        for module, source in _SOURCES.items()
        if any(full.split(".")[0] == library for full in _imports(source))
    }
    assert users <= _ONLY_IN[library]


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("errors", "models"),
        ("transport", "client"),
        ("waiting", "starting"),
        ("client", "server.jobs"),
        ("cli.run", "server.main"),
        ("server.jobs", "jobs"),
        ("server.store", "watcher"),
        ("server.jobtable", "server.store"),
    ],
)
def test_a_wrong_import_is_found(module: str, imported: str) -> None:
    """The test itself sees imports up, sideways and across."""
    assert _wrong(module, imported) is not None


@pytest.mark.parametrize("side", ["client", "server"])
def test_the_readme_shows_the_layers(side: str) -> None:
    """Its tables name every module, and none imports what stands after it."""
    readme = (_PACKAGE.parent / "README.md").read_text()
    table = readme.partition(f"| {side.title()} | Reason to exist |\n")[2].partition("\n\n")[0]
    names = [name for row in table.splitlines() for name in re.findall(r"`(\w+)/?`", row.split("|")[1])]
    assert set(names) == {unit for where, unit in _RANKS if where == side} - {
        "__init__",
        "__main__",
        "_version",
    }
    place = {name: number for number, name in enumerate(names)}
    for module, source in _SOURCES.items():
        where, unit = _unit(module)
        if where == side and unit in place:
            used = {name for other, name in map(_unit, _ours(source)) if other == side and name in place}
            assert all(place[name] <= place[unit] for name in used), module


def test_imports_for_types_alone_do_not_count() -> None:
    """Both ways of writing the condition are known; what stands beside it counts, in functions too."""
    source = """
import typing
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from asyncsandbox.sandbox import Sandbox
if typing.TYPE_CHECKING:
    import asyncsandbox.client
def late():
    from asyncsandbox import protocol
"""
    assert _ours(source) == {"protocol.__init__"}
