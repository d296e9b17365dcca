"""What is public is meant to be, is named, and is explained."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
import types
from collections.abc import Iterator

import pytest

import asyncsandbox
from asyncsandbox import errors, testing

# Names that programs rely on. One may be added; none may go.
_PINNED = """
    Client Sandbox Job JobGroup JobSpec JobInfo JobRef JobResult JobState EndReason ExecutionResult OutputChunk
    OutputEvent PollPolicy wait wait_all as_completed ALL_COMPLETED FIRST_COMPLETED FIRST_EXCEPTION
    AsyncSandboxError TransportError ConnectError RequestTimeoutError ProtocolError APIError AuthenticationError
    PermissionDeniedError NotFoundError ConflictError InvalidRequestError RateLimitError ServerError
    SandboxClosedError JobError JobFailedError JobTimedOutError JobKilledError JobLostError JobRemovedError
    JobNotFinishedError StartError LeaseExpiredError ServerUnreachableError WaitTimeoutError
    FileChange FileWatch RunStream StreamOutput StreamResult Terminal
"""
_MEMBERS = {
    "Client": "create_sandbox connect list_sandboxes job job_group stats aclose",
    "Sandbox": """
        create id info run_code run_code_background run_code_async run_code_stream terminal start_all
        job_group list_processes kill_process job files env
        commands pause resume kill
    """,
    "Job": "process_id name sandbox ref state info wait result refresh kill output follow remove",
    "JobSpec": "code language timeout env name working_dir stdin args files collect metadata",
    "JobResult": """
        process_id name sandbox_id state end_reason exit_code signal stdout_bytes stderr_bytes stdout_truncated
        stderr_truncated queued_at started_at ended_at duration files output_error stdout stderr ok check
    """,
    "JobGroup": "run_code_background start_all add",
    "OutputChunk": "data next_offset eof",
    "StreamOutput": "stream text at",
    "StreamResult": "success exit_code signal state execution_time timeout truncated",
    "FileChange": "path event at",
    "RunStream": "aclose",
    "Terminal": "send resize aclose",
    "FileWatch": "aclose",
}
# Set on each object when it is made, so the class does not show them.
_ON_INSTANCES = {"Sandbox": {"id", "files", "env", "commands"}, "Job": {"sandbox"}}
_STATES = "queued running completed failed timed_out killed lost"
_REASONS = "exit signal timeout killed out_of_memory output_limit disk_full lost unknown"


def _modules() -> Iterator[types.ModuleType]:
    for found in pkgutil.walk_packages(asyncsandbox.__path__, "asyncsandbox."):
        if not found.name.endswith(".__main__"):
            yield importlib.import_module(found.name)


def _documented(name: str, thing: object) -> Iterator[tuple[str, object]]:
    """Yield a class or function and, of a class, its public methods and properties."""
    yield name, thing
    if inspect.isclass(thing):
        for attribute, value in vars(thing).items():
            if not attribute.startswith("_") and isinstance(
                value, types.FunctionType | property | classmethod | staticmethod
            ):
                yield f"{name}.{attribute}", value


def test_all_equals_what_is_public() -> None:
    """Nothing public is missing from `__all__`, and nothing in it is missing."""
    public = {
        name
        for name, value in vars(asyncsandbox).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert set(asyncsandbox.__all__) == public | {"__version__"}


def test_all_is_sorted_as_the_linter_sorts() -> None:
    """Constants, classes, then the rest; no name twice."""

    def key(name: str) -> tuple[int, str]:
        return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)

    assert asyncsandbox.__all__ == sorted(set(asyncsandbox.__all__), key=key)


@pytest.mark.parametrize("name", _PINNED.split())
def test_a_pinned_name_is_there(name: str) -> None:
    """Programs import these from the package itself."""
    assert name in asyncsandbox.__all__


@pytest.mark.parametrize("name", _MEMBERS)
def test_pinned_members_are_there(name: str) -> None:
    """Classes keep the members that programs use."""
    cls = getattr(asyncsandbox, name)
    fields = {field.name for field in getattr(cls, "__attrs_attrs__", ())}
    missing = set(_MEMBERS[name].split()) - fields - set(dir(cls)) - _ON_INSTANCES.get(name, set())
    assert not missing


def test_states_and_reasons_are_the_documented_ones() -> None:
    """The words of records and of ``--json``."""
    assert [state.value for state in asyncsandbox.JobState] == _STATES.split()
    assert [reason.value for reason in asyncsandbox.EndReason] == _REASONS.split()


def test_every_error_is_public_and_one_of_the_tree() -> None:
    """`except AsyncSandboxError` catches all there is."""
    found = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, BaseException)
    }
    assert found <= set(asyncsandbox.__all__)
    assert all(issubclass(getattr(asyncsandbox, name), asyncsandbox.AsyncSandboxError) for name in found)


def test_every_public_thing_says_what_it_is() -> None:
    """Modules, and what the package and its test helpers offer, have docstrings, members included."""
    silent = [module.__name__ for module in _modules() if not module.__doc__]
    offered = [(asyncsandbox, name) for name in asyncsandbox.__all__] + [
        (testing, name) for name in testing.__all__
    ]
    for home, offer in offered:
        thing = getattr(home, offer)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            silent += [name for name, part in _documented(offer, thing) if not inspect.getdoc(part)]
    assert not silent


def test_every_module_exports_what_it_names() -> None:
    """No `__all__` in the package names something that is not there."""
    for module in _modules():
        missing = [name for name in getattr(module, "__all__", ()) if not hasattr(module, name)]
        assert not missing, module.__name__


def test_public_values_pickle_by_their_public_home() -> None:
    """References and specs go to other processes."""
    ref = asyncsandbox.JobRef(server="embedded", sandbox_id="s", process_id="p")
    assert pickle.loads(pickle.dumps(ref)) == ref
    spec = asyncsandbox.JobSpec("print(1)", env={"A": "1"}, files={"a.txt": "x"})
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_the_version_is_a_release_number() -> None:
    """`__version__` is what the package index and ``--version`` show."""
    assert all(part.isdigit() for part in asyncsandbox.__version__.split("."))
