"""``hopx-ai``, class AsyncSandbox, unmodified (contract 4.1, 5.3)."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import hopx_ai
import pytest
from aiohttp import web
from hopx_ai import AsyncSandbox

Until = Callable[..., Any]

_ENDED = ("completed", "failed", "killed")


async def _ended(sandbox: AsyncSandbox, process_id: str, until: Until) -> dict[str, Any]:
    def find(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in rows if row.get("process_id") == process_id and row["status"] in _ENDED]

    return find(await until(sandbox.list_processes, find))[0]


# --- the control plane --------------------------------------------------------------------------------------


async def test_health_check(base_url: str) -> None:
    """The control plane says "healthy"."""
    assert (await AsyncSandbox.health_check(base_url=base_url))["status"] == "healthy"


async def test_templates_are_found_by_name_alias_and_id(place: dict[str, str]) -> None:
    """All three lead to the same one."""
    (listed,) = await AsyncSandbox.list_templates(**place)
    assert listed.name == "code-interpreter"
    for word in ("code-interpreter", "base", listed.id):
        found = await AsyncSandbox.get_template(word, **place)
        assert (found.id, found.name) == (listed.id, listed.name)
    async with AsyncSandbox.create(template_id=listed.id, **place) as sandbox:
        assert (await sandbox.get_info()).template_id == listed.id


async def test_info(place: dict[str, str]) -> None:
    """What was asked for at the creation is told again, in types that the client takes."""
    options = {"timeout_seconds": 900, "internet_access": False}
    async with AsyncSandbox.create("code-interpreter", **options, **place) as sandbox:
        info = await sandbox.get_info()
        assert (info.status, info.timeout_seconds, info.internet_access) == ("running", 900, False)
        assert info.public_host.startswith(place["base_url"])
        assert info.resources is not None
        assert 0 < await sandbox.get_time_to_expiry() <= 900
        assert not await sandbox.is_expiring_soon()


async def test_leaving_the_block_kills(place: dict[str, str]) -> None:
    """The sandbox is gone afterwards, and the error says so."""
    async with AsyncSandbox.create("code-interpreter", **place) as sandbox:
        assert sandbox.sandbox_id in [other.sandbox_id for other in await AsyncSandbox.list(**place)]
    with pytest.raises(hopx_ai.NotFoundError) as caught:
        await AsyncSandbox.connect(sandbox.sandbox_id, **place)
    assert (caught.value.code, caught.value.status_code) == ("SANDBOX_NOT_FOUND", 404)
    assert caught.value.request_id
    assert sandbox.sandbox_id not in [other.sandbox_id async for other in AsyncSandbox.iter(**place)]


async def test_pause_resume_and_timeout(sandbox: AsyncSandbox) -> None:
    """Each changes what the sandbox says of itself."""
    await sandbox.pause()
    assert (await sandbox.get_info()).status == "paused"
    await sandbox.resume()
    assert (await sandbox.get_info()).status == "running"
    assert not (await sandbox.get_expiry_info()).has_timeout
    await sandbox.set_timeout(200)
    assert (await sandbox.get_expiry_info()).is_expiring_soon


async def test_tokens(sandbox: AsyncSandbox, place: dict[str, str]) -> None:
    """A refresh gives another token, and the older one stays good."""
    first = await sandbox.get_token()
    await sandbox.files.write("/workspace/a", "b")
    await sandbox.refresh_token()
    assert await sandbox.get_token() != first
    sandbox._agent_client.update_jwt_token(first)
    assert await sandbox.files.read("/workspace/a") == "b"
    other = await AsyncSandbox.connect(sandbox.sandbox_id, **place)
    assert await other.files.read("/workspace/a") == "b"


async def test_a_wrong_token_is_refreshed(sandbox: AsyncSandbox) -> None:
    """401 leads the client to a new token and to success."""
    assert await sandbox.is_healthy()
    sandbox._agent_client.update_jwt_token("wrong")
    assert await sandbox.env.get_all() == {}


async def test_errors_of_the_control_plane(place: dict[str, str]) -> None:
    """They are told apart, with our words and codes."""
    with pytest.raises(hopx_ai.AuthenticationError, match="API key"):
        await AsyncSandbox.create("base", base_url=place["base_url"], api_key="wrong")
    with pytest.raises(hopx_ai.TemplateNotFoundError, match="code-interpreter"):
        await AsyncSandbox.create("code-interpret", **place)
    with pytest.raises(hopx_ai.NotFoundError, match="no template"):
        await AsyncSandbox.get_template("none", **place)


# --- running ------------------------------------------------------------------------------------------------


async def test_run_code(sandbox: AsyncSandbox) -> None:
    """Languages, variables, exit codes and directories are honoured."""
    result = await sandbox.run_code("print(6 * 7)", preflight=True)
    assert (result.success, result.stdout, result.exit_code) == (True, "42\n", 0)
    result = await sandbox.run_code("echo $WHO >&2; exit 3", language="bash", env={"WHO": "me"})
    assert (result.success, result.stderr, result.exit_code) == (False, "me\n", 3)
    await sandbox.files.mkdir("/workspace/inner")
    result = await sandbox.run_code(
        "import os; print(os.path.basename(os.getcwd()))", working_dir="/workspace/inner"
    )
    assert result.stdout == "inner\n"


async def test_a_background_job_is_seen_and_read(sandbox: AsyncSandbox, async_until: Until) -> None:
    """The list that this class asks for shows it, with its output (contract 2b)."""
    code = "import os; print(os.environ['A'])"
    started = await sandbox.run_code_background(code, name="build", env={"A": "1"})
    row = await _ended(sandbox, started["process_id"], async_until)
    assert (row["name"], row["status"], row["exit_code"]) == ("build", "completed", 0)
    assert row["stdout"] == "1\n"
    assert (await sandbox.kill_process(started["process_id"]))["status"] == "completed"


async def test_kill_process(sandbox: AsyncSandbox, async_until: Until) -> None:
    """A job that runs is ended; one that never was is refused."""
    started = await sandbox.run_code_background("import time; time.sleep(600)")
    assert (await sandbox.kill_process(started["process_id"]))["status"] == "killed"
    row = await _ended(sandbox, started["process_id"], async_until)
    assert row["status"] == "killed"
    with pytest.raises(hopx_ai.AgentError, match="404"):
        await sandbox.kill_process("bg_unknown")


async def test_fifty_at_once_are_fifty_jobs(sandbox: AsyncSandbox, async_until: Until) -> None:
    """Each start is exactly one record, whatever the client does at its first use."""
    started = await asyncio.gather(
        *(sandbox.run_code_background(f"print({n})", name=str(n)) for n in range(50))
    )
    rows = await async_until(
        sandbox.list_processes,
        lambda rows: all(row["status"] in _ENDED for row in rows if row.get("process_id")),
    )
    jobs = [row for row in rows if row.get("process_id")]
    assert sorted(row["process_id"] for row in jobs) == sorted(job["process_id"] for job in started)
    assert all(row["stdout"] == f"{row['name']}\n" for row in jobs)


async def test_commands(sandbox: AsyncSandbox, async_until: Until) -> None:
    """A failing one is a result; one in the background is listed under the id that its text names."""
    result = await sandbox.commands.run("echo $A; exit 4", env={"A": "b c"})
    assert (result.stdout, result.exit_code, result.success) == ("b c\n", 4, False)
    result = await sandbox.commands.run("echo later", background=True)
    row = await _ended(sandbox, result.stdout.rpartition(" ")[2], async_until)
    assert row["stdout"] == "later\n"


async def test_a_signed_webhook(sandbox: AsyncSandbox) -> None:
    """The callback comes with the headers asked for and a signature of time and body (contract 2.6)."""
    received: asyncio.Future[tuple[Any, bytes]] = asyncio.get_running_loop().create_future()

    async def hook(request: web.Request) -> web.Response:
        body = await request.read()
        if not received.done():
            received.set_result((request.headers, body))
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/hook", hook)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        accepted = await sandbox.run_code_async(
            "print('told')",
            f"http://127.0.0.1:{runner.addresses[0][1]}/hook",
            callback_headers={"X-Mine": "yes"},
            callback_signature_secret="secret",
        )
        async with asyncio.timeout(50):
            headers, body = await received
    finally:
        await runner.cleanup()
    signed = headers["X-HopX-Timestamp"].encode() + body
    digest = hmac.new(b"secret", signed, hashlib.sha256).hexdigest()
    assert headers["X-HopX-Signature"] == f"sha256={digest}"
    assert headers["X-Mine"] == "yes"
    told = json.loads(body)
    assert told["execution_id"] == accepted["execution_id"]
    assert (told["status"], told["stdout"], told["exit_code"]) == ("completed", "told\n", 0)


async def test_run_code_stream(sandbox: AsyncSandbox) -> None:
    """Output comes as frames; the end is told before the last one."""
    code = "import sys; print('out'); print('err', file=sys.stderr)"
    async with asyncio.timeout(50):
        frames = [frame async for frame in sandbox.run_code_stream(code)]
    for stream, text in (("stdout", "out\n"), ("stderr", "err\n")):
        assert "".join(frame["data"] for frame in frames if frame["type"] == stream) == text
    assert [frame["exit_code"] for frame in frames if frame["type"] == "result"] == [0]
    assert (frames[-1]["type"], frames[-1]["success"]) == ("complete", True)


async def test_watch(sandbox: AsyncSandbox) -> None:
    """A new file is told of under its own path."""

    async def write() -> None:
        for number in range(250):  # no frame says that the watch has begun
            await sandbox.files.write(f"/workspace/new-{number}.txt", "x")
            await asyncio.sleep(0.2)

    await sandbox.is_healthy()
    writing = asyncio.create_task(write())
    try:
        async with asyncio.timeout(50):
            change = await anext(aiter(sandbox.files.watch("/workspace")))
    finally:
        writing.cancel()
    assert (change["type"], change["path"][:15]) == ("change", "/workspace/new-")


async def test_terminal(sandbox: AsyncSandbox) -> None:
    """A shell reads what is typed; its end is told, then the connection is closed."""
    socket = await sandbox.terminal.connect()
    await sandbox.terminal.resize(socket, 100, 40)
    await sandbox.terminal.send_input(socket, "echo $((40 + 2)); stty size; exit 5\n")
    async with asyncio.timeout(50):
        frames = [frame async for frame in sandbox.terminal.iter_output(socket)]
    text = "".join(frame["data"] for frame in frames if frame["type"] == "output")
    assert "42" in text
    assert "40 100" in text
    assert (frames[-1]["type"], frames[-1]["code"]) == ("exit", 5)


# --- files, variables, the agent ----------------------------------------------------------------------------


async def test_files(sandbox: AsyncSandbox) -> None:
    """Text, bytes, directories and what is not there."""
    files = sandbox.files
    await files.write("/workspace/a.txt", "wörds\n")
    await files.write_bytes("/workspace/raw", b"\0\xff\n")
    await files.mkdir("/workspace/deep/er")
    assert await files.read("/workspace/a.txt") == "wörds\n"
    assert await files.read_bytes("/workspace/raw") == b"\0\xff\n"
    listed = await files.list("/workspace")
    assert [(entry.name, entry.is_dir) for entry in listed] == [
        ("a.txt", False),
        ("deep", True),
        ("raw", False),
    ]
    await files.remove("/workspace/deep")
    assert not await files.exists("/workspace/deep")
    with pytest.raises(hopx_ai.FileNotFoundError, match="no file"):
        await files.read("/workspace/none")
    with pytest.raises(hopx_ai.AgentError, match="403"):
        await files.read("/etc/passwd")


async def test_text_that_could_be_base64_is_stored_as_it_is(sandbox: AsyncSandbox) -> None:
    """The client decodes it when it reads bytes; the file itself holds the text (contract 2.10)."""
    await sandbox.files.write("/workspace/looks", "aGVsbG8=")
    assert await sandbox.files.read("/workspace/looks") == "aGVsbG8="
    assert await sandbox.files.read_bytes("/workspace/looks") == b"hello"


async def test_env(place: dict[str, str]) -> None:
    """Variables of the creation and later ones; nothing is masked on the way."""
    given = {"STAGE": "dev", "API_KEY": "secret"}
    async with AsyncSandbox.create("code-interpreter", env_vars=given, **place) as sandbox:
        assert await sandbox.env.get_all() == given
        await sandbox.env.set("MORE", "1")
        await sandbox.env.delete("STAGE")
        code = "import os; print(os.environ['API_KEY'], os.environ['MORE'], 'STAGE' in os.environ)"
        assert (await sandbox.run_code(code)).stdout == "secret 1 False\n"
        assert await sandbox.env.set_all({"ONLY": "x"}) == {"ONLY": "x"}
        assert await sandbox.env.get("ONLY") == "x"


async def test_the_agent_about_itself(sandbox: AsyncSandbox) -> None:
    """Information, metrics, cache and sessions."""
    await sandbox.ensure_healthy()
    assert (await sandbox.get_agent_info())["vm_id"] == sandbox.sandbox_id
    assert (await sandbox.get_metrics_snapshot())["total_errors"] == 0
    assert (await sandbox.get_agent_metrics())["total_requests"] > 0
    assert (await sandbox.cache.stats())["cache"]["size"] == 0
    await sandbox.cache.clear()
    assert await sandbox.get_jupyter_sessions() == []
    assert isinstance(await sandbox.list_system_processes(), list)
