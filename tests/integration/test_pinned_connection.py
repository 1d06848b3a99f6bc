"""A connection goes to the address that was judged, and still proves to be with the host that the URL names."""

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from imagegen.deadline import Deadline
from imagegen.errors import ImageDownloadInterruptedError
from imagegen.outbound.image_source import HttpImageSource
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.reading import BLOCK_BYTES
from imagegen.outbound.url_guard import UrlGuard
from tests.fakes.provider import png

LOOPBACK = "127.0.0.1"
ANSWER = png("over TLS")


@dataclass
class Authority:
    """A certificate authority for the time of a test."""

    folder: Path
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    name: x509.Name = field(default_factory=lambda: _name("A test's authority"))

    @property
    def file(self) -> Path:
        certificate = self._sign(self.name, self.key, x509.BasicConstraints(ca=True, path_length=0))
        file = self.folder / "authority.pem"
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return file

    def certificate_for(self, *hosts: str) -> Path:
        """A certificate and its key, in one file."""
        names = [x509.IPAddress(ip_address(host)) if host[0].isdigit() else x509.DNSName(host) for host in hosts]
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(_name(hosts[0]), key, x509.SubjectAlternativeName(names))
        file = self.folder / f"{hosts[0]}.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        return file

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .sign(self.key, hashes.SHA256())
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """One that OpenSSL trusts, and it alone: HttpPool itself offers no way to trust anybody."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    return authority


@dataclass
class TlsServer:
    """`asked_for` are the hosts named in SNI, `hosts` those named in Host headers."""

    port: int
    asked_for: list[str | None]
    hosts: list[str | None]
    connections: set[Any]


@contextmanager
def serving_tls(certificate: Path, content: bytes = ANSWER) -> Iterator[TlsServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    asked_for: list[str | None] = []
    hosts: list[str | None] = []
    connections: set[Any] = set()
    context.sni_callback = lambda _socket, host, _context: asked_for.append(host)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # http.server's own name
            """A client that keeps its connection open is no news."""

        def do_GET(self) -> None:
            hosts.append(self.headers["Host"])
            connections.add(self.client_address)
            self.send_response_only(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def finish_request(self, request: Any, client_address: Any) -> None:
            request.settimeout(10)
            with context.wrap_socket(request, server_side=True) as secured:
                super().finish_request(secured, client_address)

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that does not trust us hangs up."""

    server = Server((LOOPBACK, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield TlsServer(server.server_port, asked_for, hosts, connections)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def get(pool: HttpPool, url: str, *, address: str | None, reuse: bool = False) -> bytes:
    response = pool.request("GET", urlsplit(url), Deadline.after(10), headers={}, address=address, reuse=reuse)
    return response.read()


def test_a_pinned_connection_goes_to_the_address_and_names_the_url_s_host_throughout(authority: Authority) -> None:
    with serving_tls(authority.certificate_for("images.example")) as server:
        url = f"https://images.example:{server.port}/1.png"

        assert get(HttpPool(), url, address=LOOPBACK) == ANSWER

        assert server.asked_for == ["images.example"]
        assert server.hosts == [f"images.example:{server.port}"]


@pytest.mark.parametrize("wrong", ["other.example", "images.example.evil.example", LOOPBACK, "*.example.com"])
def test_a_certificate_of_another_name_is_refused(authority: Authority, wrong: str) -> None:
    """That of the address too: it is not the address that the upstream named."""
    with serving_tls(authority.certificate_for(wrong)) as server:
        with pytest.raises(urllib3.exceptions.NewConnectionError):
            get(HttpPool(), f"https://images.example:{server.port}/1.png", address=LOOPBACK)

        assert server.hosts == []


def test_a_certificate_of_an_unknown_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "stranger").mkdir()
    with serving_tls(Authority(tmp_path / "stranger").certificate_for("images.example")) as server:
        with pytest.raises(urllib3.exceptions.NewConnectionError):
            get(HttpPool(), f"https://images.example:{server.port}/1.png", address=LOOPBACK)

        assert server.hosts == []


def test_a_connection_to_one_host_is_not_used_for_another_at_the_same_address(authority: Authority) -> None:
    with serving_tls(authority.certificate_for("images.example", "other.example")) as server:
        pool = HttpPool()
        hosts = ["images.example", "other.example", "images.example"]
        for host in hosts:
            assert get(pool, f"https://{host}:{server.port}/1.png", address=LOOPBACK, reuse=True) == ANSWER

        assert server.asked_for == ["images.example", "other.example"]
        assert server.hosts == [
            f"{host}:{server.port}" for host in ("images.example", "other.example", "images.example")
        ]


def test_a_connection_kept_for_a_host_does_not_spare_another_its_certificate(authority: Authority) -> None:
    with serving_tls(authority.certificate_for("images.example")) as server:
        pool = HttpPool()
        get(pool, f"https://images.example:{server.port}/1.png", address=LOOPBACK, reuse=True)

        with pytest.raises(urllib3.exceptions.NewConnectionError):
            get(pool, f"https://other.example:{server.port}/1.png", address=LOOPBACK, reuse=True)

        assert server.hosts == [f"images.example:{server.port}"]


def test_without_an_address_the_certificate_is_checked_against_the_url_s_host(authority: Authority) -> None:
    with serving_tls(authority.certificate_for("images.example")) as server:
        with pytest.raises(urllib3.exceptions.NewConnectionError):
            get(HttpPool(), f"https://{LOOPBACK}:{server.port}/1.png", address=None)

        assert server.hosts == []


def test_an_address_in_the_url_is_checked_as_an_address_when_pinned(authority: Authority) -> None:
    with serving_tls(authority.certificate_for(LOOPBACK)) as server:
        assert get(HttpPool(), f"https://{LOOPBACK}:{server.port}/1.png", address=LOOPBACK) == ANSWER


@pytest.mark.parametrize(("reuse", "connections"), [(True, 1), (False, 20)])
def test_a_tls_connection_is_shared_only_where_that_is_asked_for(
    authority: Authority, reuse: bool, connections: int
) -> None:
    """The session tickets of TLS 1.3, which come unasked, are no bytes of an answer."""
    with serving_tls(authority.certificate_for(LOOPBACK)) as server:
        pool = HttpPool()
        for _ in range(20):
            url = f"https://{LOOPBACK}:{server.port}/1.png"
            assert get(pool, url, address=None, reuse=reuse) == ANSWER

        assert len(server.connections) == connections


@pytest.mark.parametrize("tail", [1024, 16 * 1024, 32 * 1024])
def test_what_still_comes_over_tls_after_the_deadline_is_not_taken_for_the_image(
    authority: Authority, tail: int
) -> None:
    """A TLS socket that is shut down in Python gives the ciphertext that lies in its buffer from then on."""
    length = BLOCK_BYTES + tail
    webp = b"RIFF" + (length - 8).to_bytes(4, "little") + b"WEBP" + bytes(length - 12)
    with serving_tls(authority.certificate_for(LOOPBACK), webp) as server:
        origin = f"https://{LOOPBACK}:{server.port}"
        source = HttpImageSource(HttpPool(), UrlGuard(origin), max_bytes=length)
        deadline = Deadline.after(0.3)
        got: list[bytes] = []

        with source.open(f"{origin}/1.webp", deadline) as body:
            time.sleep(deadline.remaining() + 0.1)
            try:
                got.extend(body.blocks)
            except ImageDownloadInterruptedError:
                return

        assert b"".join(got) == webp
