"""moto's server in a process of its own: prints its port, and ends when its standard input does."""

import logging
import sys
import threading
from collections.abc import Iterable
from typing import Any

import moto.cloudformation.parsing  # noqa: F401  # loads every service it can make, which the first stack would wait for
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server


class _OneAtATime:
    """moto locks nothing, where DynamoDB's writes are atomic: its requests go one by one, any other's side by side."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if not environ.get("HTTP_X_AMZ_TARGET", "").startswith("DynamoDB"):
            answer: Iterable[bytes] = self._app(environ, start_response)
            return answer
        with self._lock:
            return list(self._app(environ, start_response))


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # its lines hold signed URLs
    server = make_server("127.0.0.1", 0, _OneAtATime(), threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()  # whoever started us is gone, however it went
    server.shutdown()


if __name__ == "__main__":
    main()
