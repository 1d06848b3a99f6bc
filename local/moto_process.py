"""moto's server in a process of its own, behind the door: prints its port, and ends when its standard input does."""

import logging
import os
import sys
import threading

import moto.cloudformation.parsing  # noqa: F401  # loads every service it can make, which the first stack would wait for
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from local import moto_speed
from local.aws_door import AwsDoor


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # its lines hold signed URLs
    moto_speed.install()
    door = AwsDoor(DomainDispatcherApplication(create_backend_app), os.environ["AWS_SECRET_ACCESS_KEY"])
    server = make_server("127.0.0.1", 0, door, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()  # whoever started us is gone, however it went
    server.shutdown()


if __name__ == "__main__":
    main()
