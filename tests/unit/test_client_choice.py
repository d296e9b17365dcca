"""Which server a client talks to, and what it refuses."""

from __future__ import annotations

import pytest

from asyncsandbox import Client, InvalidRequestError
from asyncsandbox.client import _choose


@pytest.mark.parametrize(
    ("base_url", "api_key", "environ", "expected"),
    [
        (None, None, {}, ("embedded", "")),
        ("embedded", None, {"ASYNCSANDBOX_URL": "http://a", "HOPX_API_KEY": "h"}, ("embedded", "")),
        ("http://b/", "k", {"ASYNCSANDBOX_URL": "http://a"}, ("http://b", "k")),
        ("http://b", None, {"ASYNCSANDBOX_API_KEY": "e"}, ("http://b", "e")),
        (None, None, {"ASYNCSANDBOX_URL": "http://a", "ASYNCSANDBOX_API_KEY": "e"}, ("http://a", "e")),
        (None, None, {"ASYNCSANDBOX_URL": "http://a", "HOPX_BASE_URL": "http://h"}, ("http://a", "")),
        (None, None, {"HOPX_BASE_URL": "http://h", "HOPX_API_KEY": "k"}, ("http://h", "k")),
        (None, None, {"HOPX_API_KEY": "k"}, ("https://api.hopx.dev", "k")),
    ],
)
def test_choice_of_the_server(
    base_url: str | None, api_key: str | None, environ: dict[str, str], expected: tuple[str, str]
) -> None:
    """What was given, else our variables, else Hopx's, else embedded."""
    choice = _choose(base_url, api_key, environ)
    assert (choice.server, choice.api_key) == expected


def test_a_key_without_a_server_is_a_mistake() -> None:
    """An embedded server would ignore it silently."""
    with pytest.raises(InvalidRequestError, match="no server"):
        Client(api_key="k")


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://a", "http://", "", "not a url"])
def test_what_is_no_url_is_refused(url: str) -> None:
    """Here, not at the first request."""
    with pytest.raises(InvalidRequestError, match="must be 'embedded' or an http"):
        Client(url)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isolation": "docker"}, "isolation must be"),
        ({"poll": "often"}, "poll must be a PollPolicy, not str"),
        ({"webhook": "http://x"}, "webhook must be a WebhookReceiver, not str"),
        ({"base_url": 5}, "base_url must be 'embedded' or an http"),
        ({"max_requests": 0}, "max_requests"),
        ({"result_limit": 0}, "result_limit"),
        ({"request_timeout": 0}, "request_timeout"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    """The message names the option."""
    with pytest.raises(InvalidRequestError, match=message):
        Client(**options)  # type: ignore[arg-type]


def test_isolation_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong word there is told as one."""
    monkeypatch.setenv("ASYNCSANDBOX_ISOLATION", "strong")
    with pytest.raises(InvalidRequestError, match="'strong'"):
        Client()


def test_repr_says_which_server() -> None:
    """Embedded or the URL; never a key."""
    assert repr(Client()) == "<Client open embedded sandboxes=0>"
    assert repr(Client("http://h:1/", api_key="secret")) == "<Client open http://h:1 sandboxes=0>"


@pytest.mark.parametrize(
    "options", [{"template": ""}, {"timeout_seconds": 0}, {"timeout_seconds": -5}, {"env": {"A": 1}}]
)
def test_impossible_sandboxes_are_refused_at_the_call(options: dict[str, object]) -> None:
    """Before anything is started for them."""
    with pytest.raises(InvalidRequestError):
        Client().create_sandbox(**options)  # type: ignore[arg-type]
