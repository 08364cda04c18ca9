import socket
import struct
import threading
from collections.abc import Callable

import pytest

from paredown.evaluators.device_server.wire import TRACKER_MAGIC, Wire, WireError


@pytest.fixture
def pair() -> tuple[Wire, socket.socket]:
    near, far = socket.socketpair()
    return Wire(near, 0.3), far


Pair = tuple[Wire, socket.socket]


def closed(pair: Pair) -> None:
    pair[0].close()
    pair[1].close()


def test_texts_and_numbers_pass(pair: Pair) -> None:
    wire, far = pair
    other = Wire(far, 0.3)
    wire.write_text("client:key -timeout=3")
    wire.write_int(-7)
    assert other.read_text() == "client:key -timeout=3"
    assert other.read_int() == -7
    closed(pair)


def test_a_peer_that_says_nothing_is_not_waited_for(pair: Pair) -> None:
    with pytest.raises(WireError, match="no answer in time"):
        pair[0].read_int()
    closed(pair)


def test_a_peer_that_leaves_in_a_message_is_noticed(pair: Pair) -> None:
    wire, far = pair
    far.sendall(struct.pack("<i", 100) + b"half")
    far.close()
    with pytest.raises(WireError, match="closed the connection"):
        wire.read_text()
    wire.close()


@pytest.mark.parametrize("size", [-1, 1 << 30])
def test_a_length_that_no_message_has_is_refused(pair: Pair, size: int) -> None:
    wire, far = pair
    far.sendall(struct.pack("<i", size))
    with pytest.raises(WireError, match=f"a message of {size} bytes"):
        wire.read_text()
    closed(pair)


def test_nothing_listening_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(WireError, match=f"no connection to 127.0.0.1:{port}"):
        Wire.connect("127.0.0.1", port, 1.0)


def answering(answer: Callable[[Wire], None], far: socket.socket) -> threading.Thread:
    thread = threading.Thread(target=answer, args=(Wire(far, 1.0),))
    thread.start()
    return thread


def test_what_is_no_tracker_is_told(pair: Pair) -> None:
    wire, far = pair
    thread = answering(lambda other: other.write_int(other.read_int() + 1), far)
    with pytest.raises(WireError, match="no TVM RPC tracker"):
        wire.greet_tracker()
    thread.join()
    closed(pair)


def test_a_question_brings_the_answer(pair: Pair) -> None:
    wire, far = pair

    def answer(other: Wire) -> None:
        assert other.read_int() == TRACKER_MAGIC
        other.write_int(TRACKER_MAGIC)
        other.write_text(f'{{"said": {other.read_text()}}}')

    thread = answering(answer, far)
    wire.greet_tracker()
    assert wire.ask(4, "pi") == {"said": [4, "pi"]}
    thread.join()
    closed(pair)
