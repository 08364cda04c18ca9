import pytest

from paredown.hw_profiles import Connection, ProfileError, parse_connection


@pytest.mark.parametrize(
    ("text", "connection"),
    [
        ("local", Connection("local")),
        ("compile-only", Connection("compile-only")),
        ("rpc://pi.local:9090", Connection("server", "pi.local", 9090)),
        ("rpc://10.0.0.7:9090/pi", Connection("server", "10.0.0.7", 9090, "pi")),
        ("rpc://[fe80::1]:9090", Connection("server", "fe80::1", 9090)),
        ("tracker://lab:9190/rpi-4", Connection("tracker", "lab", 9190, "rpi-4")),
    ],
)
def test_every_form_is_read_and_written(text: str, connection: Connection) -> None:
    assert parse_connection(text) == connection
    assert str(connection) == text


@pytest.mark.parametrize(
    "text",
    ["", "ssh", "rpc://", "rpc://host", "rpc://host:0", "rpc://host:70000", "tracker://h:x/k"],
)
def test_anything_else_is_refused_with_all_forms(text: str) -> None:
    with pytest.raises(ProfileError, match=r"`connection` must be 'local', .*'rpc://HOST:PORT'"):
        parse_connection(text)


def test_a_tracker_needs_a_key() -> None:
    with pytest.raises(ProfileError, match="must name the key"):
        parse_connection("tracker://host:9190")


def test_only_servers_and_trackers_are_remote() -> None:
    assert parse_connection("rpc://host:1").is_remote
    assert not parse_connection("compile-only").is_remote
