"""The proxy that docs/deploy.md shows, as nginx itself runs it in front of a service."""

import datetime
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from openai import OpenAI

from tests.server.support import Running, create_job, pairs, serve, wait_until
from tests.tree import ROOT

NGINX = shutil.which("nginx", path="/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin")
NAME = "alignkit.example"
CONNECTIONS = 100

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serve(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, service: Running) -> Iterator[httpx.Client]:
    """A client that knows the proxy's certificate and name."""
    folder = tmp_path_factory.mktemp("nginx")
    folder.chmod(0o755)
    certificate(folder)
    port = free_port()
    (folder / "nginx.conf").write_text(configuration(folder, port, service.url))
    command = [str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    process = subprocess.Popen(command)
    try:
        wait_until(lambda: is_open(port))
        trust = ssl.create_default_context(cafile=folder / "alignkit.pem")
        transport = httpx.HTTPTransport(verify=trust)
        with httpx.Client(
            base_url=f"https://127.0.0.1:{port}",
            headers={"host": NAME},
            transport=transport,
            timeout=30,
        ) as client:
            yield client
    finally:
        process.terminate()
        process.wait()


def configuration(folder: Path, port: int, service: str) -> str:
    """The page's block with this place's ports and files, in what a whole configuration needs."""
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```nginx\n(.*?)```", page, re.DOTALL)
    for shown, here in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/", f"{folder}/"),
        ("http://127.0.0.1:8000", service),
    ):
        assert block.count(shown), shown
        block = block.replace(shown, here)
    places = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"daemon off;\npid {folder}/pid;\nerror_log stderr error;\n"
        f"events {{ worker_connections 1024; }}\nhttp {{\naccess_log off;\n{places}{block}}}\n"
    )


def certificate(folder: Path) -> None:
    """A certificate for this machine, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(NAME), x509.IPAddress(ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "alignkit.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "alignkit.key").write_bytes(private)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def client_of(proxy: httpx.Client, service: Running) -> OpenAI:
    return OpenAI(base_url=f"{proxy.base_url}/v1", api_key=service.new_key("proxied"), http_client=proxy)


def test_the_official_client_works_and_is_told_to_stay_with_tls(
    proxy: httpx.Client, service: Running
) -> None:
    assert client_of(proxy, service).models.list().data
    answer = proxy.get("/healthz")
    assert answer.status_code == 200
    assert answer.headers["strict-transport-security"] == "max-age=31536000"


def test_a_file_beyond_nginx_s_own_limit_is_uploaded(proxy: httpx.Client, service: Running) -> None:
    client, content = client_of(proxy, service), pairs(20_000)
    assert len(content) > 2 * 2**20
    file = client.files.create(file=("large.jsonl", content), purpose="fine-tune")
    assert client.files.content(file.id).read() == content


def test_events_come_while_the_stream_is_open(proxy: httpx.Client, service: Running) -> None:
    client = client_of(proxy, service)
    job = create_job(client)
    path = f"/v1/fine_tuning/jobs/{job.id}/events?stream=true"
    with proxy.stream("GET", path, headers={"authorization": f"Bearer {client.api_key}"}) as answer:
        assert answer.status_code == 200
        assert job.id in next(line for line in answer.iter_lines() if line.startswith("data:"))
    client.fine_tuning.jobs.cancel(job.id)


def test_an_address_has_so_many_connections_at_once(proxy: httpx.Client, service: Running) -> None:
    """Each holds a request whose body is still to come."""
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: {NAME}\r\nauthorization: Bearer {service.new_key('many')}\r\n"
        "content-type: multipart/form-data; boundary=b\r\ncontent-length: 1000\r\n\r\n"
    )
    with ExitStack() as held:
        for _ in range(CONNECTIONS):
            plain = socket.create_connection(("127.0.0.1", proxy.base_url.port or 0), timeout=30)
            held.enter_context(trust.wrap_socket(plain)).sendall(head.encode())
        wait_until(lambda: proxy.get("/healthz").status_code == 503)
    wait_until(lambda: proxy.get("/healthz").status_code == 200)
