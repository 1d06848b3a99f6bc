"""moto's server in a process of its own: prints its port, and ends when its standard input does."""

import logging
import sys

import moto.cloudformation.parsing  # noqa: F401  # loads every service it can make, which the first stack would wait for
from moto.server import ThreadedMotoServer


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # its lines hold signed URLs
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.read()  # whoever started us is gone, however it went
    server.stop()


if __name__ == "__main__":
    main()
