"""From a client's path to a real one, and never outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncsandbox.errors import InvalidRequestError, PermissionDeniedError
from asyncsandbox.server.paths import Roots


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """A sandbox's two directories, beside something that is not its own."""
    for name in ("workspace", "tmp", "other"):
        (tmp_path / name).mkdir()
    return Roots(tmp_path / "workspace", tmp_path / "tmp")


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ("a/b", "workspace/a/b"),
        (".", "workspace"),
        ("/workspace", "workspace"),
        ("/workspace/a/../b", "workspace/b"),
        ("/tmp/x", "tmp/x"),
        ("../tmp/x", "tmp/x"),
    ],
)
def test_paths_of_clients_become_real(roots: Roots, given: str, where: str) -> None:
    """Nothing has to be there."""
    assert roots.resolve(given) == roots.workspace.parent / where


def test_real_paths_inside_are_understood(roots: Roots) -> None:
    """Jobs see these where nothing is isolated."""
    real = roots.tmp / "file"
    assert roots.resolve(str(real)) == real
    assert roots.show(real) == "/tmp/file"
    assert roots.show(roots.workspace) == "/workspace"
    assert roots.show(Path("/elsewhere")) == "/elsewhere"


@pytest.mark.parametrize(
    "given",
    [
        "/etc/passwd",
        "..",
        "../other",
        "/workspace/../../etc",
        "/tmpfoo",
        "/workspacefoo",
        "/",
        "a/../../other/x",
    ],
)
def test_what_leads_outside_is_refused(roots: Roots, given: str) -> None:
    """Whether it is there or not."""
    with pytest.raises(PermissionDeniedError, match="outside") as caught:
        roots.resolve(given)
    assert caught.value.code == "FORBIDDEN"
    with pytest.raises(PermissionDeniedError):
        roots.resolve(given, follow=False)


def test_links_that_lead_outside_are_refused(roots: Roots) -> None:
    """At the end or on the way; the link itself may still be named to remove it."""
    (roots.workspace / "link").symlink_to(roots.workspace.parent / "other")
    for given in ("link", "link/x", "link/../other"):
        with pytest.raises(PermissionDeniedError):
            roots.resolve(given)
    assert roots.resolve("link", follow=False) == roots.workspace / "link"
    with pytest.raises(PermissionDeniedError):
        roots.resolve("link/x", follow=False)


def test_links_that_stay_inside_are_followed(roots: Roots) -> None:
    """From one of the two directories to the other as well."""
    (roots.workspace / "link").symlink_to(roots.tmp)
    assert roots.resolve("link/x") == roots.tmp / "x"


def test_relative_paths_may_start_elsewhere(roots: Roots) -> None:
    """At a job's own directory, for its files."""
    base = roots.workspace / "job"
    assert roots.resolve("x", base=base) == base / "x"
    with pytest.raises(PermissionDeniedError):
        roots.resolve("../../other/x", base=base)


@pytest.mark.parametrize("given", ["", "a\0b"])
def test_impossible_paths_are_refused(roots: Roots, given: str) -> None:
    """With a word of their own."""
    with pytest.raises(InvalidRequestError) as caught:
        roots.resolve(given)
    assert caught.value.code == "INVALID_PATH"


def test_the_roots_know_themselves(roots: Roots) -> None:
    """So that nobody removes them."""
    assert roots.is_root(roots.resolve("/workspace"))
    assert roots.is_root(roots.resolve("/tmp/"))
    assert not roots.is_root(roots.resolve("a"))
