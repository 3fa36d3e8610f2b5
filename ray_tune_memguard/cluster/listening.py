"""Finds out whether a control service (GCS) listens at an address.

Ray's own client does not: where none answers, it tries for a minute and ends the process. The
control service speaks gRPC, which is HTTP/2; two frames of it need no library.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

#: For the connection, and for an answer to the call.
_TIMEOUT_S = 2.0
#: For the first frame: a head that is short of memory takes its time.
_FIRST_FRAME_S = 15.0
_MAX_PORT = 65535
_DEFAULT = "as `ray start --head` prints it (port 6379 by default)"

# HTTP/2 (RFC 9113): what a client begins with, types of frames, and flags.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4
_HEADER_LENGTH = 9
#: A longer frame needs the consent of who gets it: it is text of another protocol.
_MAX_LENGTH = _HEADER_LENGTH + 2**14
#: An empty message, not compressed.
_EMPTY_MESSAGE = bytes(5)
#: Only a control service has it; it changes nothing, and every one may ask.
_METHOD = b"/ray.rpc.NodeInfoGcsService/GetClusterId"
#: UNIMPLEMENTED, in a header as gRPC writes it: without Huffman's code.
_NO_SUCH_METHOD = b"grpc-status\x0212"


def why_no_cluster(address: str) -> str | None:
    """A sentence that says why no control service can be asked at an address; None if one can.

    Args:
        address: ``host:port``, or ``[host]:port`` for an address of IPv6.
    """
    parts = _parts(address)
    if parts is None:
        without = f", without {address.partition('://')[0]}://" if "://" in address else ""
        brackets = " IPv6 needs brackets: [::1]:6379." if address.count(":") > 2 else ""
        return f"The address must be host:port, {_DEFAULT}{without}; got {address!r}.{brackets}"
    try:
        with socket.create_connection(parts, timeout=_TIMEOUT_S) as connection:
            # With TLS it is the certificates that tell who answers.
            if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
                return None
            kind = _kind(connection)
    except TimeoutError:
        return f"What listens at {address} did not answer within {_FIRST_FRAME_S:.0f} s."
    except (OSError, ValueError) as error:  # ValueError: a name that no host can have.
        return f"No Ray cluster answers at {address} ({error})."
    if kind is None:
        return None
    return f"What answers at {address} is {kind}: give the address of the cluster, {_DEFAULT}."


def _parts(address: str) -> tuple[str, int] | None:
    host, _, port = address.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if is_bracketed else host
    is_port = port.isdecimal() and int(port) <= _MAX_PORT
    if not host or not is_port or "/" in host or (":" in host) != is_bracketed:
        return None
    return host, int(port)


def _kind(connection: socket.socket) -> str | None:
    """What else than a control service answers; None if it may be one.

    Raises:
        TimeoutError: nothing answers.
    """
    connection.sendall(_PREFACE + _frame(_SETTINGS))
    frames = _frames(connection)
    try:
        is_grpc = next(frames, (None, b""))[0] == _SETTINGS
    except ConnectionError:
        is_grpc = False
    if not is_grpc:
        return "no control service of Ray, which would speak gRPC (the dashboard, port 8265?)"
    try:
        connection.sendall(_frame(_SETTINGS, _ACK) + _call())
        answer = next((payload for kind, payload in frames if kind == _HEADERS), b"")
    except OSError:
        return None  # Ray's own client may have an answer.
    if _NO_SUCH_METHOD in answer:
        return "another server of gRPC (the Ray Client server, port 10001, or a raylet?)"
    return None


def _frame(kind: int, flags: int = 0, payload: bytes = b"", stream: int = 0) -> bytes:
    length, number = len(payload).to_bytes(3, "big"), stream.to_bytes(4, "big")
    return length + bytes((kind, flags)) + number + payload


def _call() -> bytes:
    """The call of a method with an empty message."""
    headers = b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            b"\x04" + _text(_METHOD),  # :path
            b"\x01" + _text(b"memguard"),  # :authority
            b"\x00" + _text(b"content-type") + _text(b"application/grpc"),
            b"\x00" + _text(b"te") + _text(b"trailers"),
        )
    )
    return _frame(_HEADERS, _END_HEADERS, headers, 1) + _frame(
        _DATA, _END_STREAM, _EMPTY_MESSAGE, 1
    )


def _text(text: bytes) -> bytes:
    return bytes((len(text),)) + text


def _frames(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Type and payload of each frame, until the other side ends.

    Raises:
        TimeoutError: the time is over.
        OSError: the connection is broken.
    """
    ends, buffer = time.monotonic() + _FIRST_FRAME_S, b""
    while True:
        length = _HEADER_LENGTH + int.from_bytes(buffer[:3], "big")
        if len(buffer) >= max(_HEADER_LENGTH, length):
            yield buffer[3], buffer[_HEADER_LENGTH:length]
            buffer = buffer[length:]
            ends = time.monotonic() + _TIMEOUT_S
            continue
        if length > _MAX_LENGTH:
            return
        left = ends - time.monotonic()
        if left <= 0:
            raise TimeoutError("no whole frame came")
        connection.settimeout(left)
        if not (received := connection.recv(4096)):
            return
        buffer += received
