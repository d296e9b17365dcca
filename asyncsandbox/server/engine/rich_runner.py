r"""Runs a program as ``python -u PROGRAM ARGS…`` does, and keeps what a notebook would show of its end.

Started as ``python -u rich_runner.py KEPT PROGRAM ARGS…`` by the interpreter of the sandbox, which may be older
than the server's; so this file is standard library only, and imports nothing that a program could have a module
of its own by the name of. It is a file of its own in the sandbox, apart from this package.

What it keeps goes to the file KEPT as frames, each ``NAME LENGTH\n`` and so many bytes:
``result``, ``html``, ``svg``, ``markdown`` (UTF-8), ``json``, ``dataframe`` (JSON), ``png`` (once for each
picture), ``omitted`` (the name of a frame for which there was no room). No file means that there was nothing.

The program is the module ``__main__`` and finds nothing of the runner in its arguments, paths and tracebacks. Only
who walks the stack, beyond the program's own first frame, can see that something called it.
"""

from __future__ import annotations

import _ast  # what `ast` wraps; that one takes longer to import than all the rest here
import builtins
import os
import sys

TYPE_CHECKING = False  # as `typing` has it, which would have to be imported
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType
    from typing import Any

ROOM = 8 * 1024 * 1024
"""Bytes that are kept in all."""

CELLS = 100_000
"""Cells up to which a table is kept as data."""


class Kept:
    """What a notebook would show. Nothing that goes wrong here is the program's problem."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._process = os.getpid()
        self._frames: list[tuple[str, bytes]] = []
        self._room = ROOM
        self._shown: Any = None  # figures that are kept already, weakly

    def _add(self, name: str, make: Callable[[], object]) -> None:
        """Keep what `make` returns, text or bytes, if it returns any and there is room for it."""
        data = quietly(make)
        if isinstance(data, str):
            data = data.encode("utf-8", "backslashreplace")
        if not isinstance(data, bytes):
            return
        if len(data) > self._room:
            name, data = "omitted", name.encode()
        self._room -= len(data)
        self._frames.append((name, data))

    def end(self, value: object) -> None:
        """Keep the value of the last expression, and the figures that are open and were not shown before."""
        if value is not None:
            quietly(lambda: self._value(value))
        quietly(self._rest)

    def show(self) -> None:
        """Keep all figures that are open."""
        quietly(self._all)

    def _all(self) -> None:
        for figure in open_figures():
            self._figure(figure)

    def _rest(self) -> None:
        for figure in open_figures():
            if self._shown is None or figure not in self._shown:
                self._figure(figure)

    def _value(self, value: object) -> None:
        self._add("result", lambda: repr(value))
        self._add("html", lambda: _represent(value, "_repr_html_"))
        self._add("svg", lambda: _represent(value, "_repr_svg_"))
        self._add("markdown", lambda: _represent(value, "_repr_markdown_"))
        self._add("png", lambda: _represent(value, "_repr_png_"))
        self._add("json", lambda: _json(value))
        self._table(value)
        self._lone_figure(value)

    def _table(self, value: Any) -> None:
        pandas: Any = sys.modules.get("pandas")
        if pandas is None or not isinstance(value, pandas.DataFrame):
            return
        if value.size > CELLS:
            self._add("omitted", lambda: "dataframe")
        else:
            self._add("dataframe", lambda: value.to_json(orient="split", date_format="iso"))

    def _lone_figure(self, value: object) -> None:
        """Keep a figure that pyplot does not know."""
        figures = sys.modules.get("matplotlib.figure")
        if isinstance(value, getattr(figures, "Figure", ())) and value not in open_figures():
            self._figure(value)

    def _figure(self, figure: Any) -> None:
        if not figure.axes and not figure.lines:
            return
        if self._shown is None:
            import weakref  # noqa: PLC0415 - matplotlib has imported it

            self._shown = weakref.WeakSet()
        self._shown.add(figure)
        self._add("png", lambda: _picture(figure))

    def write(self) -> None:
        """Write what was kept; not in a copy of the process that the program made."""
        if not self._frames or os.getpid() != self._process:
            return
        try:
            with open(self._path, "wb") as file:  # noqa: PTH123 - no pathlib here
                file.writelines(
                    b"%s %d\n%s" % (name.encode(), len(data), data) for name, data in self._frames
                )
        except Exception:  # noqa: BLE001, S110 - a full disk, or a program that replaced `open`
            pass


def quietly(make: Callable[[], object]) -> object:
    """Return what `make` does; None when that goes wrong. The program's own code may run in it."""
    try:
        return make()
    except (Exception, SystemExit):  # noqa: BLE001 - the program has ended, and this is not part of it
        return None


def _represent(value: object, method: str) -> object:
    """Return what a value's class gives as one representation; some give metadata beside it."""
    represent = getattr(type(value), method, None)
    shown = represent(value) if represent is not None else None
    return shown[0] if isinstance(shown, tuple) and shown else shown


def _json(value: object) -> str | None:
    shown = _represent(value, "_repr_json_")
    if shown is None:
        return None
    import json  # noqa: PLC0415 - only for who has a use for it

    return json.dumps(shown, allow_nan=False)


def open_figures() -> list[Any]:
    """Return the figures of pyplot in the order of their numbers."""
    helpers = sys.modules.get("matplotlib._pylab_helpers")
    if helpers is None:
        return []
    managers = sorted(helpers.Gcf.get_all_fig_managers(), key=lambda manager: manager.num)
    return [manager.canvas.figure for manager in managers]


def _picture(figure: Any) -> bytes:
    import io  # noqa: PLC0415 - matplotlib has imported both
    import warnings  # noqa: PLC0415

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()


class ShowHook:
    """Finds the module behind ``pyplot.show()`` when the program imports it, and lets it keep figures."""

    MODULE = "matplotlib.backends.backend_agg"

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Leave every module to the other finders, and go with the one that is meant."""
        if name != self.MODULE:
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                self._wrap(spec.loader)
                return spec
        return None

    def _wrap(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            plain = module.show

            def show(*args: object, **kwargs: object) -> object:
                self._kept.show()
                return plain(*args, **kwargs)

            module.show = show

        loader.exec_module = exec_module


def parts(source: bytes, path: str) -> tuple[CodeType, CodeType | None]:
    """Return a program's code without its last expression, and that expression's; None = there is none."""
    tree: Any = compile(source, path, "exec", _ast.PyCF_ONLY_AST, dont_inherit=True)
    last = tree.body[-1] if tree.body else None
    tail = None
    if isinstance(last, _ast.Expr) and not source.rstrip().endswith(b";"):  # silenced, as in notebooks
        tail = compile(_ast.Expression(last.value), path, "eval", dont_inherit=True)
        if len(tree.body) > 1 or not isinstance(last.value, _ast.Constant):  # a lone one is the docstring
            tree.body.pop()
    return compile(tree, path, "exec", dont_inherit=True), tail


def namespace(path: str) -> dict[str, Any]:
    """Make the module ``__main__`` anew, as it is when `path` is run by itself; return its names."""
    mine = globals()
    main = type(sys)("__main__")
    names = vars(main)
    names.update(__builtins__=builtins, __file__=path, __loader__=type(mine["__loader__"])("__main__", path))
    for name, value in (("__cached__", None), ("__annotations__", {})):  # not in every version
        if name in mine:
            names[name] = value
    sys.modules["__main__"] = main
    return names


def hide(error: BaseException) -> None:
    """Let the traceback that ends the program begin at the program's own first frame."""
    plain = sys.excepthook
    own = error.__traceback__ and error.__traceback__.tb_next

    def hook(kind: Any, value: BaseException, traceback: Any) -> None:
        if value is error:
            sys.excepthook = plain
            sys.last_traceback = value.__traceback__ = traceback = own
        plain(kind, value, traceback)

    sys.excepthook = hook


def main() -> None:
    """Run the program."""
    path = sys.argv[2]
    kept = Kept(sys.argv[1])
    sys.argv = sys.argv[2:]
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - no pathlib here
            head, tail = parts(file.read(), path)
    except Exception:  # noqa: BLE001 - what cannot be compiled is best explained by the interpreter itself
        warned = [] if sys.warnoptions else ["-W", "ignore::SyntaxWarning"]  # it has warned once
        os.execv(sys.executable, [sys.executable, "-u", *warned, *sys.argv])  # noqa: S606
    if hasattr(sys, "orig_argv"):  # from Python 3.10
        sys.orig_argv = [*sys.orig_argv[:2], *sys.argv]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.realpath(path))  # noqa: PTH120 - no pathlib here
    os.environ.setdefault("MPLBACKEND", "Agg")  # a figure must not need a screen
    sys.meta_path.insert(0, ShowHook(kept))
    names = namespace(path)
    try:
        exec(head, names)  # noqa: S102 - running what it is told is its task
        kept.end(None if tail is None else eval(tail, names))  # noqa: S307 - the same
    except SystemExit:
        kept.end(None)
        raise
    except BaseException as error:
        hide(error)
        raise
    finally:
        kept.write()


if __name__ == "__main__":
    main()
