"""Commands against a served instance: jobs that outlive the command which started them."""

from __future__ import annotations

import json
import shlex
import sys
import urllib.request
from typing import Any

import pytest

_LATER = "import os, time\nprint('begun', flush=True)\nwhile not os.path.exists({!r}): time.sleep(0.01)\nprint('over')"


def test_a_job_in_the_background_through_all_its_life(served: Any) -> None:
    """Started, listed, followed, waited for, removed: each by a command of its own."""
    go_on = served.directory / "go-on"
    started = served("run", "--background", "--name", "later", _LATER.format(str(go_on)))
    job = started.out.strip()
    sandbox, _, process = job.partition("/")
    assert started.status == 0
    assert f"sandbox {sandbox} stays" in started.err

    listed = served("ps", "--sandbox", sandbox)
    assert [line.split()[0] for line in listed.out.splitlines()] == ["JOB", job]
    assert listed.out.rstrip().endswith("later")

    following = served.start("logs", "-f", job)
    assert following.line() == "begun"
    assert served("wait", "--timeout", "0", job).status == 5
    assert served("rm", job).status == 1
    go_on.touch()
    done = following.end()
    assert (done.status, done.out) == (0, "over\n")

    waited = served("wait", process, "--sandbox", sandbox)
    assert (waited.status, waited.out) == (0, f"{job} completed 0\n")
    assert served("logs", process).out == "begun\nover\n"
    removed = served("rm", job)
    assert (removed.status, removed.out) == (0, f"{job}\n")
    assert served("ps", "--sandbox", sandbox, "--json").out == ""
    assert served("sandbox", "kill", sandbox).out == f"{sandbox}\n"


def test_killing_is_confirmed_and_told(served: Any, sleeper: Any) -> None:
    """`kill` prints how each job ended; one that had ended before stays as it was."""
    refs = served("run", "--background", sleeper.code(), "print(1)").words
    sleeper.pids()
    assert served("wait", refs[1]).status == 0
    killed = served("kill", *refs)
    assert killed.status == 0
    assert sorted(killed.out.splitlines()) == sorted([f"{refs[0]} killed SIGTERM", f"{refs[1]} completed 0"])
    (row,) = [found for found in served("ps", "--json").objects if found["ref"] == refs[0]]
    assert (row["state"], row["end_reason"]) == ("killed", "killed")


def test_waiting_for_a_job_that_failed_is_status_1(served: Any) -> None:
    """The status says whether all completed; --json has the whole result."""
    refs = served("run", "--background", "print(1)", "import sys; sys.exit('no')").words
    waited = served("wait", "--json", *refs)
    ends = {found["ref"]: found for found in waited.objects}
    assert waited.status == 1
    assert (ends[refs[0]]["state"], ends[refs[0]]["stdout"]) == ("completed", "1\n")
    assert (ends[refs[1]]["state"], ends[refs[1]]["exit_code"], ends[refs[1]]["stderr"]) == (
        "failed",
        1,
        "no\n",
    )


def test_logs_of_one_stream_only(served: Any) -> None:
    """Each stream goes where it belongs; --stdout and --stderr choose."""
    code = "import sys; print('out'); print('err', file=sys.stderr)"
    job = served("run", "--background", code).out.strip()
    assert served("wait", job).status == 0
    both = served("logs", job)
    assert (both.out, both.err) == ("out\n", "err\n")
    out = served("logs", "--stdout", job)
    assert (out.out, out.err) == ("out\n", "")
    err = served("logs", "-f", "--stderr", job)
    assert (err.out, err.err) == ("", "err\n")
    pieces = served("logs", "--json", job).objects
    assert pieces == [
        {"stream": "stdout", "offset": 0, "data": "out\n"},
        {"stream": "stderr", "offset": 0, "data": "err\n"},
    ]


def test_a_gap_in_long_output_is_told(served: Any) -> None:
    """More than the server keeps is not passed over in silence."""
    size = 30_000_000
    job = served("run", "--background", f"import sys; sys.stdout.write('x' * {size})").out.strip()
    assert served("wait", job).status == 0
    read = served("logs", job)
    lacking = size - len(read.raw)
    assert lacking > 0
    assert (read.status, read.err.splitlines()) == (
        0,
        [
            f"asyncsandbox: stdout lacks {lacking} bytes in its middle: the job wrote more than its server keeps"
        ],
    )


def test_background_starts_tell_what_was_refused(served: Any) -> None:
    """What can start is started and printed; a refused one is told, and the status is not 0."""
    started = served("run", "--background", "print(1)", "missing.py")
    assert started.status == 1
    assert len(started.words) == 1
    assert "missing.py: cannot be read" in started.err
    objects = served("run", "--background", "--json", "print(1)", "missing.py").objects
    assert [found["state"] == "refused" for found in objects] == [False, True]


def test_a_background_start_of_nothing_leaves_no_sandbox(served: Any) -> None:
    """When everything is refused, the sandbox that was to hold it is gone again."""
    before = served("sandbox", "list", "--json").objects
    refused = served("run", "--background", "--language", "cobol", "1")
    assert refused.status == 2
    assert "cobol" in refused.err
    assert served("sandbox", "list", "--json").objects == before


@pytest.mark.parametrize("more", [[], ["print(1)"]], ids=["one", "many"])
def test_a_job_whose_sandbox_is_ended_by_others_is_lost(served: Any, sleeper: Any, more: list[str]) -> None:
    """It neither hangs nor counts as a success, alone or among others."""
    before = {found["sandbox_id"] for found in served("sandbox", "list", "--json").objects}
    running = served.start("run", sleeper.code(), *more)
    sleeper.pids()
    (sandbox,) = {found["sandbox_id"] for found in served("sandbox", "list", "--json").objects} - before
    assert served("sandbox", "kill", sandbox).status == 0
    done = running.end()
    assert done.status == (1 if more else 125)
    assert "was lost: " in done.err
    assert "Traceback" not in done.err


def test_sandboxes_are_made_listed_and_ended(served: Any) -> None:
    """A sandbox keeps its variables for all its jobs until it is ended."""
    made = served("sandbox", "create", "--json", "--env", "STAGE=dev", "--timeout-seconds", "600")
    (sandbox,) = [found["sandbox_id"] for found in made.objects]
    used = served("run", "--sandbox", sandbox, "import os; print(os.environ['STAGE'])")
    assert (used.status, used.out) == (0, "dev\n")
    (row,) = [
        found for found in served("sandbox", "list", "--json").objects if found["sandbox_id"] == sandbox
    ]
    assert (row["status"], row["timeout_seconds"]) == ("running", 600)
    assert sandbox in served("sandbox", "list").out
    ended = served("sandbox", "kill", "--json", sandbox, "sb_none")
    assert ended.objects == [{"sandbox_id": sandbox, "killed": True}]
    assert ended.status == 4
    assert "there is no sandbox 'sb_none'" in ended.err


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["logs", "sb_none/bg_1"], 4, "sb_none"),
        (["logs", "bg_none"], 4, "no sandbox of this key has a job 'bg_none'"),
        (["rm", "/x"], 2, "'/x' names no job"),
        (["ps", "--sandbox", "sb_none"], 4, "sb_none"),
        (["run", "--sandbox", "sb_none", "1"], 4, "sb_none"),
        (["run", "--isolation", "none", "1"], 2, "decides for itself"),
        (["run", "--background", "--isolation", "none", "1"], 2, "--isolation"),
        (["sandbox", "create", "--template", "nosuch"], 4, "there is no template 'nosuch'"),
        (["sandbox", "create", "--timeout-seconds", "-1"], 2, "timeout"),
    ],
)
def test_what_is_not_there_is_one_line(served: Any, args: list[str], status: int, words: str) -> None:
    """The line names what was asked for, and the status its kind."""
    done = served(*args)
    assert done.status == status
    assert words in done.err
    assert len(done.err.splitlines()) == 1
    assert done.out == ""


def test_one_job_that_is_not_there_holds_back_no_other(served: Any) -> None:
    """`rm` and `kill` do what they can, and the status tells of the rest."""
    job = served("run", "--background", "print(1)").out.strip()
    assert served("wait", job).status == 0
    removed = served("rm", "bg_none", job)
    assert (removed.status, removed.out) == (4, f"{job}\n")


def test_a_process_alone_is_found_wherever_it_is(served: Any) -> None:
    """Its sandbox need not be named, and the same job named twice is one."""
    job = served("run", "--background", "print(1)").out.strip()
    process = job.partition("/")[2]
    waited = served("wait", process, process)
    assert (waited.status, waited.out) == (0, f"{job} completed 0\n")


def test_a_wrong_key_is_status_3(served: Any) -> None:
    """The server's refusal is one line."""
    done = served("ps", ASYNCSANDBOX_API_KEY="wrong")
    assert done.status == 3
    assert "401" in done.err
    assert len(done.err.splitlines()) == 1


def test_a_url_that_is_given_wins(program: Any, instance: dict[str, str]) -> None:
    """--url counts before the environment; the key still comes from there."""
    done = program.at(**instance)(
        "sandbox", "list", "--url", instance["ASYNCSANDBOX_URL"], ASYNCSANDBOX_URL="http://127.0.0.1:9"
    )
    assert done.status == 0


# --- serve --------------------------------------------------------------------------------------------------


def test_serve_prints_what_a_shell_needs(program: Any) -> None:
    """One line to paste; isolation "none" is said loudly, and the key is shown because nobody has it yet."""
    server = program.start("serve", "--port", "0", "--state-dir", "state")
    words = shlex.split(server.line())
    assert words[0] == "export"
    client = program.at(**dict(word.split("=", 1) for word in words[1:]))
    done = client("run", "print('over TCP')")
    assert (done.status, done.out) == (0, "over TCP\n")
    server.popen.terminate()
    assert "ISOLATION IS OFF" in server.end().err


def test_a_client_gets_by_with_what_serve_allows(program: Any) -> None:
    """Refused requests come again when the server said; every answer tells of the limit."""
    limits = "agent=2/s,control=1000/h"
    server = program.start("serve", "--port", "0", "--state-dir", "state", "--rate-limit", limits)
    env = dict(word.split("=", 1) for word in shlex.split(server.line())[1:])
    done = program.at(**env)("run", "import time; time.sleep(1); print('all the same')")
    assert (done.status, done.out) == (0, "all the same\n")
    request = urllib.request.Request(
        f"{env['ASYNCSANDBOX_URL']}/v1/sandboxes", headers={"X-API-Key": env["ASYNCSANDBOX_API_KEY"]}
    )
    with urllib.request.urlopen(request, timeout=50) as answer:
        assert answer.headers["X-RateLimit-Limit"] == "1000"
        assert 0 < int(answer.headers["X-RateLimit-Remaining"]) < 1000
    server.popen.terminate()
    assert server.end().status == 0


def test_serve_takes_its_key_from_a_file(program: Any) -> None:
    """A key that somebody has is not shown again."""
    key_file = program.directory / "key"
    key_file.write_text("a-key-in-a-file\n")
    server = program.start("serve", "--port", "0", "--state-dir", "state", "--api-key-file", "key", "--json")
    said = json.loads(server.line())
    assert list(said) == ["url"]
    client = program.at(ASYNCSANDBOX_URL=said["url"], ASYNCSANDBOX_API_KEY="a-key-in-a-file")
    assert client("sandbox", "list").status == 0


def test_serve_offers_templates(program: Any) -> None:
    """A template is a name for an interpreter of the operator's choice."""
    server = program.start(
        "serve", "--port", "0", "--state-dir", "state", "--json", "--template", f"mine={sys.executable}"
    )
    said = json.loads(server.line())
    client = program.at(ASYNCSANDBOX_URL=said["url"], ASYNCSANDBOX_API_KEY=said["api_key"])
    done = client("run", "--template", "mine", "print('here')")
    assert (done.status, done.out) == (0, "here\n")


def test_serve_refuses_what_it_cannot_do(program: Any) -> None:
    """A state directory or a port that is taken, a template that is none: one line each, and not 0."""
    server = program.start("serve", "--port", "0", "--state-dir", "state", "--json")
    port = json.loads(server.line())["url"].rpartition(":")[2]
    for args, words in (
        (["--port", "0", "--state-dir", "state"], "another server uses the state directory"),
        (["--port", port, "--state-dir", "other"], f"cannot listen on 127.0.0.1 port {port}"),
        (["--port", "0", "--state-dir", "other", "--template", "x=/no/such"], "template 'x': /no/such"),
        (["--port", "0", "--state-dir", "/dev/null/x"], "/dev/null/x cannot be used"),
    ):
        done = program("serve", *args)
        assert (done.status, done.out) == (1, "")
        assert words in done.err
        assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--api-key-file", "missing"], "missing cannot be read"),
        (["--template", "x"], "'x' is not of the form NAME=VALUE"),
        (["--port", "70000"], "--port"),
    ],
)
def test_serve_refuses_wrong_usage(program: Any, args: list[str], words: str) -> None:
    """Options that make no sense are usage errors, before anything is begun."""
    done = program("serve", "--state-dir", "state", *args)
    assert (done.status, done.out) == (2, "")
    assert words in done.err
    assert not (program.directory / "state").exists()


def test_serve_refuses_a_file_without_a_key(program: Any) -> None:
    """An empty key would let in everybody."""
    (program.directory / "empty").touch()
    done = program("serve", "--state-dir", "state", "--api-key-file", "empty")
    assert (done.status, done.out) == (2, "")
    assert "empty holds no key" in done.err


def test_serve_says_that_bubblewrap_is_not_there_yet(program: Any) -> None:
    """The default isolation refuses every sandbox in this version; that is no surprise for later."""
    server = program.start(
        "serve", "--port", "0", "--state-dir", "state", "--isolation", "bwrap", ASYNCSANDBOX_API_KEY="k"
    )
    url = server.line().removeprefix("export ASYNCSANDBOX_URL=")
    refused = program("run", "1", ASYNCSANDBOX_URL=url, ASYNCSANDBOX_API_KEY="k")
    assert refused.status == 2
    assert "isolation" in refused.err
    server.popen.terminate()
    assert "not there yet" in server.end().err
