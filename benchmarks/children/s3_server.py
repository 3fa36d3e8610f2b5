"""A counting S3 server on this machine: ``python -m benchmarks.children.s3_server FILE``.

Writes its port to the file. ``GET /-/bytes`` returns how many bytes of content all requests had.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

COUNT = "/-/bytes"


class Counter:
    """Counts the content of all requests to an application."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._bytes = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == COUNT:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [str(self._bytes).encode()]
        # Arrow sends files in chunks; then this header has the length.
        names = ("HTTP_X_AMZ_DECODED_CONTENT_LENGTH", "CONTENT_LENGTH")
        with self._lock:
            self._bytes += int(next((environ[name] for name in names if environ.get(name)), 0))
        return self._app(environ, start_response)


def main() -> None:
    """Serve until the process is ended."""
    app = Counter(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, True, request_handler=MotoRequestHandler)
    Path(sys.argv[1]).write_text(str(server.server_address[1]))
    server.serve_forever()


if __name__ == "__main__":
    main()
