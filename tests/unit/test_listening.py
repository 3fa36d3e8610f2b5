"""Who answers at an address, before Ray's own client asks."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ray_tune_memguard.cluster import listening
from ray_tune_memguard.cluster.listening import why_no_cluster

SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
#: Types of frames.
HEADERS = b"\x01"


def answer(headers: bytes) -> bytes:
    return len(headers).to_bytes(3, "big") + HEADERS + b"\x05\x00\x00\x00\x01" + headers


@contextmanager
def server(says: bytes, ends: bool = False, after_s: float = 0.0) -> Iterator[str]:
    """A server that says always the same; the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(4096).startswith(b"PRI * HTTP/2.0")
                time.sleep(after_s)
                connection.sendall(says)
                if not ends:
                    done.wait(10.0)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        done.set()
        thread.join()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "_TIMEOUT_S", 0.2)
    monkeypatch.setattr(listening, "_FIRST_FRAME_S", 1.0)


@pytest.mark.parametrize(
    "status",
    [
        b"\x88\x40\x0bgrpc-status\x010",
        # It wants a token.
        b"\x88\x40\x0bgrpc-status\x0216",
    ],
)
def test_a_control_service_may_be_asked(status: bytes) -> None:
    with server(SETTINGS + answer(status)) as address:
        assert why_no_cluster(address) is None


@pytest.mark.usefixtures("short")
def test_a_server_of_grpc_that_is_slow_may_be_a_control_service() -> None:
    with server(SETTINGS) as address:
        assert why_no_cluster(address) is None


def test_a_server_of_grpc_without_the_methods_of_a_control_service() -> None:
    with server(SETTINGS + answer(b"\x88\x40\x0bgrpc-status\x0212")) as address:
        reason = why_no_cluster(address) or ""
    assert f"answers at {address} is another server of gRPC (the Ray Client server" in reason


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("says", "ends"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n", False), (b"", True), (b"+", True)],
)
def test_a_server_that_does_not_speak_grpc(says: bytes, ends: bool) -> None:
    with server(says, ends) as address:
        reason = why_no_cluster(address) or ""
    assert f"answers at {address} is no control service of Ray" in reason


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("says", [b"", b"+"])
def test_a_server_that_says_nothing_is_not_called_another_one(says: bytes) -> None:
    with server(says) as address:
        reason = why_no_cluster(address)
    assert reason == f"What listens at {address} did not answer within 1 s."


def test_a_slow_head_may_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "_TIMEOUT_S", 0.2)
    with server(SETTINGS + answer(b"\x88\x40\x0bgrpc-status\x010"), after_s=0.5) as address:
        assert why_no_cluster(address) is None


def test_real_servers_of_grpc() -> None:
    grpc = pytest.importorskip("grpc")
    from concurrent.futures import ThreadPoolExecutor

    from ray.core.generated import gcs_service_pb2 as messages
    from ray.core.generated import gcs_service_pb2_grpc, ray_client_pb2_grpc

    class Nodes(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
        def GetClusterId(self, request: object, context: object) -> object:
            return messages.GetClusterIdReply(cluster_id=b"1" * 28)

    found = []
    for add, service in (
        (gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server, Nodes()),
        (
            ray_client_pb2_grpc.add_RayletDriverServicer_to_server,
            ray_client_pb2_grpc.RayletDriverServicer(),
        ),
    ):
        serving = grpc.server(ThreadPoolExecutor(1))
        add(service, serving)
        port = serving.add_insecure_port("127.0.0.1:0")
        serving.start()
        found.append(why_no_cluster(f"127.0.0.1:{port}"))
        serving.stop(None).wait()
    assert found[0] is None
    assert "another server of gRPC" in (found[1] or "")


def test_with_tls_only_the_certificates_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert why_no_cluster(f"127.0.0.1:{listener.getsockname()[1]}") is None


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("10.0.0..5:6379", "No Ray cluster answers at 10.0.0..5:6379"),
        (f"{'a' * 64}:6379", "No Ray cluster answers at aaa"),
        ("[::1]:1", "No Ray cluster answers at [::1]:1"),
        ("http://head:8265", "(port 6379 by default), without http://; got 'http://head:8265'."),
        ("ray://head:10001", "(port 6379 by default), without ray://; got 'ray://head:10001'."),
        ("::1:6379", "IPv6 needs brackets: [::1]:6379."),
        ("auto", "must be host:port"),
        ("head:99999", "must be host:port"),
        ("head:²", "must be host:port"),
    ],
)
def test_addresses_that_are_none(address: str, says: str) -> None:
    assert says in (why_no_cluster(address) or "")
