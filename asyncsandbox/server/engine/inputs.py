"""What a job finds when it starts: its script, its files, its environment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from asyncsandbox.server import refusals
from asyncsandbox.server.engine import CodeOrder, CommandOrder, Prepared
from asyncsandbox.server.engine.languages import Language, Toolchains, find_language
from asyncsandbox.server.paths import Roots, explain
from asyncsandbox.server.records import Launch, SandboxRecord
from asyncsandbox.server.templates import Template

__all__ = ["OWN_DIRECTORIES", "Inputs", "Place"]

OWN_DIRECTORIES: Final = ".jobs"
"""The directory in ``/workspace`` that holds the directories of jobs that have one of their own."""

_RUNNER: Final = Path(__file__).with_name("rich_runner.py").read_bytes()
"""Copied to where the program is: the sandbox need not see this package."""

_FALLBACK_PATH: Final = "/usr/local/bin:/usr/bin:/bin"


@attrs.frozen(kw_only=True)
class Place:
    """The directories of one sandbox.

    Attributes:
        top: the directory that holds them all.
        workspace: what clients call ``/workspace``.
        tmp: what clients call ``/tmp``.
        home: the jobs' ``HOME``.
        scripts: scripts and standard input of jobs that have not ended.
        spool: output.
        roots: the directories that clients may name.
    """

    top: Path
    workspace: Path
    tmp: Path
    home: Path
    scripts: Path
    spool: Path
    roots: Roots

    @classmethod
    def at(cls, top: Path) -> Place:
        """Return the place below a directory, which need not be there yet."""
        names = ("workspace", "tmp", "home", "scripts", "spool")
        below = {name: top / name for name in names}
        return cls(top=top, roots=Roots(below["workspace"], below["tmp"]), **below)

    def make(self) -> None:
        """Make what is missing of it."""
        for directory in (self.workspace, self.tmp, self.home, self.scripts, self.spool):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def own_directory(self, process_id: str) -> Path:
        """Return the directory of a job that has one of its own."""
        return self.workspace / OWN_DIRECTORIES / process_id

    def rich_path(self, process_id: str) -> Path:
        """Return where the runner of a job keeps what a notebook would show of it."""
        return self.scripts / f"{process_id}.rich"


class Inputs:
    """Turns orders into what can be launched.

    Args:
        toolchains: the programs that run the languages.
        shims: where ``python`` is found for interpreters whose directory has none by that name.
    """

    def __init__(self, toolchains: Toolchains, shims: Path) -> None:
        self._toolchains = toolchains
        self._shims = shims
        self._paths: dict[str, str] = {}

    def prepare_code(
        self, place: Place, template: Template, sandbox: SandboxRecord, process_id: str, order: CodeOrder
    ) -> Prepared:
        """Write a program and its files. See `Engine.prepare`."""
        spec = order.spec
        language = find_language(spec.language or "python")
        own = spec.working_dir is None and (order.own_directory or bool(spec.files))
        directory = place.own_directory(process_id) if own else place.scripts
        script = directory / f"{process_id}{language.suffix}"  # a name that no file of the job's own has
        argv = self._toolchains.argv(language, python=template.python, script=str(script), args=spec.args)
        cwd = directory if own else self._working_dir(place, spec.working_dir)
        files = {name: place.roots.resolve(name, base=cwd) for name in spec.files}
        if own:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, path in files.items():
            _write_file(name, path, spec.files[name])
        script.write_bytes(spec.code.encode(errors="surrogatepass"))
        runner = None
        if order.rich and language.name == "python":
            runner = place.scripts / f"{process_id}.runner.py"
            runner.write_bytes(_RUNNER)
            argv = [*argv[:2], str(runner), str(place.rich_path(process_id)), *argv[2:]]
        stdin = None
        if spec.stdin:
            stdin = place.scripts / f"{process_id}.stdin"
            stdin.write_bytes(spec.stdin)
        env = self.environment(place, template, sandbox, process_id, spec.env or {})
        if not own:
            _import_from(cwd, language, env)
        launch = Launch(
            argv=argv,
            env=env,
            cwd=str(cwd),
            stdin=None if stdin is None else str(stdin),
            streamed=order.streamed,
            inputs=[str(path) for path in _made(script, runner, stdin, language)],
        )
        return Prepared(launch=launch, language=language.name, working_dir=place.roots.show(cwd))

    def prepare_command(
        self, place: Place, template: Template, sandbox: SandboxRecord, process_id: str, order: CommandOrder
    ) -> Prepared:
        """Find where a command runs. See `Engine.prepare`."""
        cwd = self._working_dir(place, order.working_dir)
        env = self.environment(place, template, sandbox, process_id, order.env)
        launch = Launch(
            argv=order.argv, env=env, cwd=str(cwd), streamed=order.streamed, terminal=order.terminal
        )
        return Prepared(launch=launch, language="", working_dir=place.roots.show(cwd))

    def environment(
        self,
        place: Place,
        template: Template,
        sandbox: SandboxRecord,
        process_id: str,
        env: Mapping[str, str],
    ) -> dict[str, str]:
        """Return a job's whole environment. Of the server's own, only ``PATH`` is in it."""
        return {
            "PATH": self._path(template),
            "HOME": str(place.home),
            "TMPDIR": str(place.tmp),
            "LANG": "C.UTF-8",
            **sandbox.env,
            **env,
            "ASYNCSANDBOX_SANDBOX_ID": sandbox.id,
            "ASYNCSANDBOX_JOB_ID": process_id,
        }

    def _working_dir(self, place: Place, given: str | None) -> Path:
        """Return where a job runs; made when it is missing (contract 2b)."""
        if given is None:
            return place.workspace
        path = place.roots.resolve(given)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as exc:
            raise refusals.invalid(f"working_dir {given!r} is not a directory") from exc
        except OSError as exc:
            raise explain(given, exc) from exc
        return path

    def _path(self, template: Template) -> str:
        """Return the jobs' ``PATH``: the template's commands first, ``python`` among them in any case."""
        path = self._paths.get(template.name)
        if path is None:
            first = [str(template.bin_dir)]
            missing = [name for name in ("python", "python3") if not (template.bin_dir / name).exists()]
            if missing:
                shims = self._shims / template.name
                shims.mkdir(parents=True, exist_ok=True)
                for name in missing:
                    (shims / name).unlink(missing_ok=True)
                    (shims / name).symlink_to(template.python)
                first.append(str(shims))
            path = os.pathsep.join([*first, os.environ.get("PATH") or _FALLBACK_PATH])
            self._paths[template.name] = path
        return path


def _write_file(name: str, path: Path, data: bytes) -> None:
    """Write one of the files that came with an order; directories on the way are made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except FileExistsError as exc:
        raise refusals.invalid(f"files: {name!r} has another of the files in its way") from exc
    except OSError as exc:
        raise explain(f"files: {name}", exc) from exc


def _import_from(cwd: Path, language: Language, env: dict[str, str]) -> None:
    """Let a script that does not lie in its working directory import from there, as it would if it did."""
    if language.path_variable is not None:
        rest = env.get(language.path_variable)
        env[language.path_variable] = f"{cwd}{os.pathsep}{rest}" if rest else str(cwd)


def _made(script: Path, runner: Path | None, stdin: Path | None, language: Language) -> list[Path]:
    """Return the files that go when the job has ended: what nobody but the job itself had use for."""
    made = [script]
    if language.tool == "go":
        made.append(Path(f"{script}.bin"))
    made.extend(path for path in (runner, stdin) if path is not None)
    return made


def delete_tree(path: Path) -> None:
    """Delete a directory as far as that is possible; who looks for leftovers finds them at the next start."""
    shutil.rmtree(path, ignore_errors=True)
