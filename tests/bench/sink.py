"""An upstream and an S3 that cost next to nothing, in a process of their own: they read, and answer fixed bytes."""

import json
import os
import socket
import sys
import threading

IMAGE = b"\x89PNG\r\n\x1a\n" + os.urandom(1_500_000) + b"\0\0\0\0IEND\xaeB`\x82"


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    port = listener.getsockname()[1]
    print(port, flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_serve, args=(connection, port), daemon=True).start()


def _serve(connection: socket.socket, port: int) -> None:
    scratch = bytearray(1 << 20)
    rest = b""
    url = f"http://127.0.0.1:{port}/image.png"
    answer = json.dumps({"created": 1, "data": [{"url": url}]}).encode()
    while True:
        while b"\r\n\r\n" not in rest:
            received = connection.recv(65536)
            if not received:
                return
            rest += received
        head, _, rest = rest.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        left = length - len(rest)
        while left > 0:
            left -= connection.recv_into(scratch, min(left, len(scratch)))
        rest = b""
        body = IMAGE if head.startswith(b"GET") else answer if head.startswith(b"POST") else b""
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        connection.sendall(body)


if __name__ == "__main__":
    main()
