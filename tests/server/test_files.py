"""Files of a sandbox, through HTTP."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any

import aiohttp
import pytest


def _top(server: Any, box: Any) -> Path:
    return server.directory / "sandboxes" / box.id


async def test_text_is_written_and_read(box: Any) -> None:
    """Directories on the way are made; an odd name is a name."""
    path = "/workspace/a b&c/ü%2F.txt"
    body = await box.ok("POST", "/files/write", json={"path": path, "content": "grüße\n"})
    assert (body["success"], body["path"], body["size"]) == (True, path, 8)
    body = await box.ok("GET", "/files/read", params={"path": path})
    assert (body["content"], body["path"], body["size"]) == ("grüße\n", path, 8)


async def test_bytes_are_written_and_downloaded_as_they_are(box: Any) -> None:
    """Base64 is decoded on the way in; what looks like base64 is left alone on the way out."""
    data = bytes(range(256)) * 2000
    content = base64.b64encode(data).decode()
    await box.ok("POST", "/files/write", json={"path": "bin", "content": content, "encoding": "base64"})
    assert await box.ok("GET", "/files/download", params={"path": "bin"}) == data
    await box.ok("POST", "/files/write", json={"path": "text", "content": "aGVsbG8="})
    assert await box.ok("GET", "/files/download", params={"path": "text"}) == b"aGVsbG8="


async def test_a_download_is_never_a_compressed_neighbour(box: Any) -> None:
    """Whatever the client would accept."""
    await box.ok("POST", "/files/write", json={"path": "f", "content": "plain"})
    await box.ok("POST", "/files/write", json={"path": "f.gz", "content": "other"})
    headers = {"Accept-Encoding": "gzip"}
    assert await box.ok("GET", "/files/download", params={"path": "f"}, headers=headers) == b"plain"


async def test_a_file_s_mode_is_as_asked(box: Any, shared_server: Any) -> None:
    """Also where it was there before; a script can be run."""
    await box.ok("POST", "/files/write", json={"path": "run.sh", "content": "x"})
    body = {"path": "run.sh", "content": "#!/bin/sh\necho ran", "mode": "0755"}
    await box.ok("POST", "/files/write", json=body)
    listed = await box.ok("GET", "/files/list")
    assert listed["files"][0]["permissions"] == "-rwxr-xr-x"
    assert (await box.ok("POST", "/commands/run", json={"command": "./run.sh"}))["stdout"] == "ran\n"


async def test_an_existing_file_can_be_protected(box: Any) -> None:
    """With overwrite false."""
    body = {"path": "f", "content": "1", "overwrite": False}
    await box.ok("POST", "/files/write", json=body)
    status, answer = await box.call("POST", "/files/write", json=body)
    assert (status, answer["code"]) == (409, "FILE_ALREADY_EXISTS")


async def test_a_directory_is_listed_in_both_spellings(box: Any) -> None:
    """By name, with times that have an offset; a broken link is listed as well."""
    await box.ok("POST", "/files/mkdir", json={"path": "d/b"})
    await box.ok("POST", "/files/write", json={"path": "d/a.txt", "content": "abc"})
    await box.ok("POST", "/commands/run", json={"command": "ln -s nowhere d/link"})
    body = await box.ok("GET", "/files/list", params={"path": "d"})
    assert (body["path"], body["count"]) == ("/workspace/d", 3)
    first, second, third = body["files"]
    assert (first["name"], first["path"], first["size"]) == ("a.txt", "/workspace/d/a.txt", 3)
    assert first["is_directory"] is first["is_dir"] is False
    assert second["is_directory"] is second["is_dir"] is True
    assert third["name"] == "link"
    assert first["modified_time"] == first["modified"]
    assert first["modified"].endswith("Z")


async def test_both_roots_are_there_and_their_own(box: Any) -> None:
    """An empty sandbox has an empty workspace and an empty /tmp, which are what jobs use."""
    assert (await box.ok("GET", "/files/list"))["files"] == []
    assert (await box.ok("GET", "/files/list", params={"path": "/tmp"}))["files"] == []
    code = "import tempfile; open(tempfile.gettempdir() + '/t', 'w').write('from a job')"
    await box.end(await box.start(code))
    assert (await box.ok("GET", "/files/read", params={"path": "/tmp/t"}))["content"] == "from a job"


async def test_existence_is_told(box: Any) -> None:
    """Of files and directories."""
    assert (await box.ok("GET", "/files/exists", params={"path": "x"})) == {"exists": False, "path": "x"}
    await box.ok("POST", "/files/mkdir", json={"path": "x"})
    await box.ok("POST", "/files/mkdir", json={"path": "x"})
    assert (await box.ok("GET", "/files/exists", params={"path": "x"}))["exists"] is True


async def test_removal_takes_trees_and_spares_what_links_point_to(box: Any) -> None:
    """And never the roots themselves."""
    await box.ok("POST", "/files/write", json={"path": "d/e/f", "content": ""})
    await box.ok("POST", "/files/write", json={"path": "kept", "content": "k"})
    await box.ok("POST", "/commands/run", json={"command": "ln -s kept link; ln -s /etc outside"})
    for path in ("link", "outside", "d"):
        assert (await box.ok("DELETE", "/files/remove", params={"path": path}))["success"] is True
    names = [row["name"] for row in (await box.ok("GET", "/files/list"))["files"]]
    assert names == ["kept"]
    status, body = await box.call("DELETE", "/files/remove", params={"path": "/workspace"})
    assert (status, body["code"]) == (403, "FORBIDDEN")
    status, body = await box.call("DELETE", "/files/remove", params={"path": "gone"})
    assert (status, body["code"]) == (404, "FILE_NOT_FOUND")


async def test_a_form_is_uploaded_with_the_file_first(box: Any, shared_server: Any) -> None:
    """As official clients send it, of any size, or with the path first."""
    data = os.urandom(3_000_000)
    for order in (("file", "path"), ("path", "file")):
        form = aiohttp.FormData()
        for part in order:
            if part == "file":
                form.add_field("file", io.BytesIO(data), filename="local.bin")
            else:
                form.add_field("path", f"/workspace/up/{order[0]}")
        body = await box.ok("POST", "/files/upload", data=form)
        assert (body["path"], body["size"]) == (f"/workspace/up/{order[0]}", len(data))
        assert (await box.ok("GET", "/files/download", params={"path": body["path"]}) == data) is True
    assert {entry.name for entry in _top(shared_server, box).iterdir()} <= {
        "workspace",
        "tmp",
        "home",
        "scripts",
        "spool",
        "supervisor.log",
    }


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ({"path": "x"}, 400),
        ({"file": b"x"}, 400),
        ({"file": b"x", "path": "/etc/x"}, 403),
        ({"file": b"x", "path": "/workspace"}, 400),
    ],
)
async def test_a_senseless_upload_is_refused(box: Any, parts: dict[str, Any], status: int) -> None:
    """And leaves nothing behind."""
    form = aiohttp.FormData(default_to_multipart=True)
    for name, value in parts.items():
        form.add_field(name, io.BytesIO(value) if isinstance(value, bytes) else value)
    got, body = await box.call("POST", "/files/upload", data=form)
    assert got == status, body
    assert (await box.ok("GET", "/files/list"))["files"] == []


async def test_an_upload_that_is_no_form_is_refused(box: Any) -> None:
    """The message says what one is."""
    status, body = await box.call("POST", "/files/upload", json={"path": "x"})
    assert status == 400
    assert "multipart" in body["message"]


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/files/read", {}, 400, "MISSING_PARAMETER"),
        ("GET", "/files/read", {"params": {"path": "nothing"}}, 404, "FILE_NOT_FOUND"),
        ("GET", "/files/read", {"params": {"path": "/workspace"}}, 400, "INVALID_PATH"),
        ("GET", "/files/read", {"params": {"path": "/etc/passwd"}}, 403, "FORBIDDEN"),
        ("GET", "/files/read", {"params": {"path": "../../../etc/passwd"}}, 403, "FORBIDDEN"),
        ("GET", "/files/download", {"params": {"path": "nothing"}}, 404, "FILE_NOT_FOUND"),
        ("GET", "/files/download", {"params": {"path": "/workspace"}}, 400, "INVALID_PATH"),
        ("GET", "/files/list", {"params": {"path": "nothing"}}, 404, "FILE_NOT_FOUND"),
        ("GET", "/files/exists", {"params": {"path": "/etc"}}, 403, "FORBIDDEN"),
        ("GET", "/files/exists", {"params": {"path": ""}}, 400, "INVALID_PATH"),
        ("GET", "/files/read", {"params": {"path": "a" * 300}}, 400, "INVALID_PATH"),
        ("POST", "/files/write", {"json": {"path": "\ud800", "content": ""}}, 400, "INVALID_PATH"),
        ("POST", "/files/mkdir", {"json": {}}, 400, "MISSING_PARAMETER"),
        ("POST", "/files/mkdir", {"json": {"path": "/x"}}, 403, "FORBIDDEN"),
        ("POST", "/files/write", {"json": {"path": "x"}}, 400, "MISSING_PARAMETER"),
        ("POST", "/files/write", {"json": {"content": "x"}}, 400, "MISSING_PARAMETER"),
        ("POST", "/files/write", {"json": {"path": "/workspace", "content": ""}}, 400, "INVALID_PATH"),
        (
            "POST",
            "/files/write",
            {"json": {"path": "x", "content": "", "mode": "rwx"}},
            400,
            "INVALID_REQUEST",
        ),
        (
            "POST",
            "/files/write",
            {"json": {"path": "x", "content": "%", "encoding": "base64"}},
            400,
            "INVALID_REQUEST",
        ),
        (
            "POST",
            "/files/write",
            {"json": {"path": "x", "content": "", "encoding": "x"}},
            400,
            "INVALID_REQUEST",
        ),
        (
            "POST",
            "/files/write",
            {"json": {"path": "x", "content": "", "encoding": {}}},
            400,
            "INVALID_REQUEST",
        ),
        (
            "POST",
            "/files/write",
            {"json": {"path": "x", "content": "", "overwrite": "false"}},
            400,
            "INVALID_REQUEST",
        ),
    ],
)
async def test_senseless_file_calls_are_refused(
    box: Any, *, method: str, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    """Each with the contract's code."""
    got, body = await box.call(method, path, **options)
    assert (got, body["code"]) == (status, code), body


async def test_a_link_that_leads_outside_opens_nothing(box: Any) -> None:
    """A job may make one; the server does not follow it."""
    await box.ok("POST", "/commands/run", json={"command": "ln -s /etc out; ln -s /etc/passwd secret"})
    for path in ("out/passwd", "secret"):
        for call in ("/files/read", "/files/download"):
            status, body = await box.call("GET", call, params={"path": path})
            assert (status, body["code"]) == (403, "FORBIDDEN")
    status, body = await box.call("POST", "/files/write", json={"path": "out/x", "content": ""})
    assert status == 403
