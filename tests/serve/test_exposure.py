"""What other machines can reach is named, and nothing else."""

import logging
import socket

import pytest

from reasonrt.serve.config import is_loopback
from reasonrt.serve.exposure import open_ports, warn_of_open_ports


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.1.2.3", False),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("", False),
        ("10.1.2.3", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_sockets_beyond_loopback_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as inner, socket.create_server(("0.0.0.0", 0)) as outer:  # noqa: S104
        ports = " ".join(open_ports())
        with caplog.at_level(logging.WARNING):
            warn_of_open_ports()

        assert f":{outer.getsockname()[1]} " in ports
        assert f":{inner.getsockname()[1]} " not in ports
        assert f"other machines can reach 0.0.0.0:{outer.getsockname()[1]}" in caplog.text
