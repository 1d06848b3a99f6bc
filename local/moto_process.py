"""moto's server behind the AWS door, in its own process: prints its port, and ends when its standard input ends."""

import logging
import os
import sys
import threading

import moto.cloudformation.parsing  # noqa: F401  # loads all services now, so that the first stack does not wait for it
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from local import moto_speed
from local.aws_door import AwsDoor


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # its request lines contain signed URLs
    moto_speed.install()
    door = AwsDoor(DomainDispatcherApplication(create_backend_app), os.environ["AWS_SECRET_ACCESS_KEY"])
    server = make_server("127.0.0.1", 0, door, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()  # returns when the parent process ends, also if it is killed
    server.shutdown()


if __name__ == "__main__":
    main()
