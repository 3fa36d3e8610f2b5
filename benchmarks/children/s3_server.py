"""An S3 server on this machine that counts what it is sent."""

from __future__ import annotations

import logging
import multiprocessing
import threading
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any

import pyarrow.fs
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

from tests.integration.local_s3 import filesystem_of


def _serve(port: Connection, sent: Any) -> None:
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    app = DomainDispatcherApplication(create_backend_app)

    def counting(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        # Arrow sends files in chunks; then the first header has the length.
        names = ("HTTP_X_AMZ_DECODED_CONTENT_LENGTH", "CONTENT_LENGTH")
        with sent.get_lock():
            sent.value += int(next((environ[name] for name in names if environ.get(name)), 0))
        return app(environ, start_response)

    server = make_server("127.0.0.1", 0, counting, True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port.send(server.server_address[1])
    parent = multiprocessing.parent_process()
    assert parent is not None
    # However that ends.
    parent.join()


def start_server(bucket: str) -> tuple[pyarrow.fs.FileSystem, Callable[[], int]]:
    """Start one that ends with this process.

    Returns:
        A file system with this bucket, and what says how many bytes of content all requests had.
    """
    context = multiprocessing.get_context("spawn")
    sent = context.Value("q")
    ours, theirs = context.Pipe(duplex=False)
    context.Process(target=_serve, args=(theirs, sent), daemon=True).start()
    filesystem = filesystem_of(f"127.0.0.1:{ours.recv()}", bucket)
    return filesystem, lambda: int(sent.value)
