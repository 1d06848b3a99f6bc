"""A connection goes to the approved address, and its certificate must name the host of the URL."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImageDownloadInterruptedError
from imagegen.outbound.image_source import HttpImageSource
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.read_deadline import BLOCK_BYTES
from imagegen.outbound.url_guard import UrlGuard
from tests.fakes.provider import png
from tests.support.moved_clock import MovedClock

LOOPBACK = "127.0.0.1"
ANSWER = png("over TLS")


class Authority:
    """A certificate authority of one test."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.file = self._signed("authority", self._key, x509.BasicConstraints(ca=True, path_length=0))

    def certificate_for(self, *hosts: str) -> Path:
        """A certificate and its key, in one file."""
        names = [x509.IPAddress(ip_address(host)) if host[0].isdigit() else x509.DNSName(host) for host in hosts]
        return self._signed(hosts[0], ec.generate_private_key(ec.SECP256R1()), x509.SubjectAlternativeName(names))

    def _signed(self, name: str, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType) -> Path:
        now = datetime.now(UTC)
        subject, issuer = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, it)]) for it in (name, "authority"))
        builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        pem, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
        file = self._folder / f"{name}.pem"
        file.write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, no_password)
            + builder.sign(self._key, hashes.SHA256()).public_bytes(pem)
        )
        return file


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """The only authority that OpenSSL trusts. HttpPool has no option for it."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    return authority


class TlsServer(ThreadingHTTPServer):
    """`asked_for` holds the hosts of SNI, `hosts` those of the Host headers."""

    daemon_threads = True

    def __init__(self, certificate: Path, content: bytes) -> None:
        super().__init__((LOOPBACK, 0), _Handler)
        self.content = content
        self.asked_for: list[str | None] = []
        self.hosts: list[str | None] = []
        self.connections: set[Any] = set()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._context.sni_callback = lambda _socket, host, _context: self.asked_for.append(host)

    def url(self, host: str) -> str:
        return f"https://{host}:{self.server_port}/1.png"

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(10)
        with self._context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that does not trust the certificate hangs up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TlsServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # http.server's own name
        """Logs nothing."""

    def do_GET(self) -> None:
        self.server.hosts.append(self.headers["Host"])
        self.server.connections.add(self.client_address)
        self.send_response_only(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)


@contextmanager
def serving_tls(certificate: Path, content: bytes = ANSWER) -> Iterator[TlsServer]:
    with TlsServer(certificate, content) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def get(pool: HttpPool, url: str, *, address: str | None = LOOPBACK, reuse: bool = False) -> bytes:
    return pool.request("GET", urlsplit(url), Deadline.after(10), headers={}, address=address, reuse=reuse).read()


def assert_refused(server: TlsServer, host: str, pool: HttpPool | None = None, **more: Any) -> None:
    """The client refuses the connection before it sends a request."""
    before = list(server.hosts)
    with pytest.raises(urllib3.exceptions.NewConnectionError):
        get(pool or HttpPool(), server.url(host), **more)
    assert server.hosts == before


def test_a_pinned_connection_uses_the_address_and_sends_the_host_of_the_url(authority: Authority) -> None:
    with serving_tls(authority.certificate_for("images.example")) as server:
        assert get(HttpPool(), server.url("images.example")) == ANSWER
        assert server.asked_for == ["images.example"]
        assert server.hosts == [f"images.example:{server.server_port}"]


@pytest.mark.parametrize("wrong", ["other.example", "images.example.evil.example", LOOPBACK, "*.example.com"])
def test_a_certificate_of_another_name_is_refused(authority: Authority, wrong: str) -> None:
    """Also a certificate of the pinned address, since the URL has a host."""
    with serving_tls(authority.certificate_for(wrong)) as server:
        assert_refused(server, "images.example")


def test_a_certificate_must_name_the_host_also_without_an_address_and_beside_a_kept_connection(
    authority: Authority,
) -> None:
    with serving_tls(authority.certificate_for("images.example")) as server:
        assert_refused(server, LOOPBACK, address=None)
        pool = HttpPool()
        get(pool, server.url("images.example"), reuse=True)
        assert_refused(server, "other.example", pool, reuse=True)


@pytest.mark.parametrize("address", [LOOPBACK, None])
def test_a_certificate_of_an_unknown_authority_is_refused(
    authority: Authority, tmp_path: Path, address: str | None
) -> None:
    with serving_tls(Authority(tmp_path / "stranger").certificate_for(LOOPBACK)) as server:
        assert_refused(server, LOOPBACK, address=address)


def test_two_hosts_at_one_address_share_no_connection(authority: Authority) -> None:
    with serving_tls(authority.certificate_for("images.example", "other.example")) as server:
        pool = HttpPool()
        hosts = ["images.example", "other.example", "images.example"]
        for host in hosts:
            assert get(pool, server.url(host), reuse=True) == ANSWER
        assert server.asked_for == hosts[:2]
        assert server.hosts == [f"{host}:{server.server_port}" for host in hosts]


def test_a_certificate_can_name_the_address_in_the_url(authority: Authority) -> None:
    with serving_tls(authority.certificate_for(LOOPBACK)) as server:
        assert get(HttpPool(), server.url(LOOPBACK)) == ANSWER


@pytest.mark.parametrize(("reuse", "connections"), [(True, 1), (False, 5)])
def test_only_a_reusable_tls_connection_is_shared(authority: Authority, reuse: bool, connections: int) -> None:
    """The session tickets of TLS 1.3 do not count as bytes of an answer."""
    with serving_tls(authority.certificate_for(LOOPBACK)) as server:
        pool = HttpPool()
        for _ in range(5):
            assert get(pool, server.url(LOOPBACK), address=None, reuse=reuse) == ANSWER
        assert len(server.connections) == connections


@pytest.mark.parametrize("tail", [1024, 16 * 1024, 32 * 1024])
def test_tls_bytes_after_the_deadline_are_not_read(
    authority: Authority, tail: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a shutdown in Python, a TLS socket returns the ciphertext in its buffer."""
    clock = MovedClock(monkeypatch)
    length = BLOCK_BYTES + tail
    webp = b"RIFF" + (length - 8).to_bytes(4, "little") + b"WEBP" + bytes(length - 12)
    with serving_tls(authority.certificate_for(LOOPBACK), webp) as server:
        source = HttpImageSource(HttpPool(), UrlGuard(server.url(LOOPBACK)), max_bytes=length)
        with source.open(server.url(LOOPBACK), Deadline.after(10)) as body:
            clock.move(10)
            with pytest.raises(ImageDownloadInterruptedError):
                list(body.blocks)
