"""A real S3 server on loopback (SeaweedFS), and a proxy before it that counts and misbehaves on request.

The proxy is the witness for what reaches the wire: it sees every request that a client sends to the
store, and counts before it does anything else with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from pitr_pipelines.demo.s3_server import ALL, User, make_buckets, prepare_s3_server
from pitr_pipelines.errors import PitrError

ACCESS_KEY = "pitraccess"
SECRET_KEY = "pitr/secret+key"  # as secret as a test's can be
ADMIN_KEY = "pitradmin"
BUCKET = "backups"
LOCKED_BUCKET = "locked-backups"

Mishap = Literal[
    "none",
    "answer",
    "answer-late",
    "reset-before-body",
    "reset-mid-body",
    "swallow-answer",
    "reset-answer",
    "damage",
    "answer-after",
    "twice",
]
"""What the proxy does to the next write. `answer-after` hands it on, and then gives an answer of its own;
`twice` hands it on two times, and gives the second answer, as something that repeats requests does."""

Kind = Literal["put", "create", "part", "complete", "abort", "other write", "look", "read"]


@dataclass(frozen=True)
class S3Server:
    """A running server, and its port."""

    port: int
    process: subprocess.Popen[bytes]
    directory: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        # SIGTERM would take 15 s, and nothing here is to be kept.
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def start_s3_server(attempts: int = 5) -> S3Server:
    """Start SeaweedFS; on other ports, if somebody else took one of them in the meantime."""
    for _ in range(attempts - 1):
        try:
            return _start()
        except (AssertionError, OSError, PitrError):
            continue
    return _start()


def _start() -> S3Server:
    """Start SeaweedFS in a directory of its own, two users and two buckets; wait for it."""
    directory = Path(tempfile.mkdtemp(prefix="pitr-s3-"))
    admin = User("admin", ADMIN_KEY, SECRET_KEY, ALL)
    command = prepare_s3_server(directory, (admin, User("backup", ACCESS_KEY, SECRET_KEY)))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command.arguments,
            stdout=log,
            stderr=log,
            cwd=directory,
            # Without a key of its own it refuses to encrypt what it stores.
            env=os.environ | {"WEED_S3_SSE_KEY": "as secret as a test's can be"},
            start_new_session=True,
        )
    server = S3Server(command.port, process, directory)

    def check() -> None:
        if process.poll() is not None:
            raise AssertionError((directory / "log").read_text()[-3000:])

    try:
        make_buckets(server.url, admin, {BUCKET: False, LOCKED_BUCKET: True}, check)
    except BaseException:
        server.stop()
        raise
    return server


class CountingProxy:
    """Takes requests for the server, counts them by method and kind, and hands them on or spoils them.

    `mishap` is for the next write of the kinds in `spoils` and every one after it, or so many as
    `mishaps_left` says. `cut_reads` is how many answers to a GET are cut in their middle, from the next on.
    `heads` are what was asked, in order: the lines of each request before its body.
    """

    def __init__(self, server_port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.requests: Counter[str] = Counter()
        self.kinds: Counter[Kind] = Counter()
        self.heads: list[tuple[Kind, list[str]]] = []
        self.spoils: set[Kind] = {"put", "part", "complete", "create", "abort", "other write"}
        self.mishaps_left: int | None = None
        self.mishap: Mishap = "none"
        self.answer = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
        self.body_bytes = 0
        self.read_bytes = 0
        """What was sent in answer to GETs, without their heads."""
        self.cut_reads = 0
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def writes(self) -> int:
        return sum(count for method, count in self.requests.items() if method not in ("GET", "HEAD"))

    def wait_until_idle(self) -> None:
        """Wait until every request that came in so far was handed on and answered, or given up."""
        for thread in list(self._threads):
            thread.join(timeout=60)

    def stop(self) -> None:
        if self._over.is_set():
            return
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        for thread in self._threads:
            thread.join(timeout=5)

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(20)
        if self._tls is not None:
            try:
                client = self._tls.wrap_socket(client, server_side=True)
            except OSError:
                client.close()
                return
        with client, client.makefile("rb") as incoming:
            try:
                head = _head(incoming)
                if head:
                    self._one(client, incoming, head)
            except OSError:
                return

    def _one(self, client: socket.socket, incoming: BinaryIO, head: list[bytes]) -> None:
        """Serve one request on a connection; the answer closes it."""
        method = head[0].split()[0].decode("latin-1")
        self.requests[method] += 1
        kind = _kind(head)
        self.kinds[kind] += 1
        self.heads.append((kind, [line.decode("latin-1") for line in head]))
        length = int(_value(head, b"content-length") or 0)
        mishap = self._mishap_of(kind)
        if mishap == "answer":
            client.sendall(_closing(self.answer))
            client.shutdown(socket.SHUT_WR)
            self.body_bytes += len(incoming.read())
            return
        if mishap == "reset-before-body":
            _reset(client)
            return
        if _value(head, b"expect"):
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if mishap == "reset-mid-body":
            self.body_bytes += len(incoming.read(length // 2))
            _reset(client)
            return
        body = incoming.read(length)
        self.body_bytes += len(body)
        if len(body) < length:
            self._forward(head, body, wait=False)
            return
        if mishap == "answer-late":
            client.sendall(_closing(self.answer))
            return
        if mishap == "damage":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        answer = self._forward(head, body, wait=True)
        if mishap == "twice":
            answer = self._forward(head, body, wait=True)
        if method == "GET":
            self.read_bytes += len(answer.partition(b"\r\n\r\n")[2])
        if mishap == "swallow-answer":
            # Silent until the client gives up.
            incoming.read(1)
        elif mishap == "reset-answer":
            _reset(client)
        elif method == "GET" and self.cut_reads:
            self.cut_reads -= 1
            client.sendall(answer[: len(answer) * 2 // 3])
        elif mishap == "answer-after":
            client.sendall(_closing(self.answer))
        else:
            client.sendall(answer)

    def _mishap_of(self, kind: Kind) -> Mishap:
        if kind not in self.spoils or self.mishaps_left == 0:
            return "none"
        if self.mishaps_left is not None and self.mishap != "none":
            self.mishaps_left -= 1
        return self.mishap

    def _forward(self, head: list[bytes], body: bytes, *, wait: bool) -> bytes:
        lines = [line for line in head if not line.lower().startswith((b"expect:", b"connection:"))]
        lines += [b"Connection: close"]
        with socket.create_connection(("127.0.0.1", self._server_port), timeout=20) as server:
            server.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
            if not wait:
                return b""
            answer = b""
            while part := server.recv(65536):
                answer += part
            return answer


def _kind(head: list[bytes]) -> Kind:
    method, target = head[0].split()[:2]
    names = {part.partition(b"=")[0] for part in target.partition(b"?")[2].split(b"&")}
    if method in (b"HEAD", b"GET"):
        return "look" if method == b"HEAD" else "read"
    if b"uploadId" in names:
        kinds: dict[bytes, Kind] = {b"PUT": "part", b"POST": "complete", b"DELETE": "abort"}
        return kinds[method]
    if method == b"POST" and b"uploads" in names:
        return "create"
    return "put" if method == b"PUT" and names <= {b"", b"x-id"} else "other write"


def _head(incoming: BinaryIO) -> list[bytes]:
    lines: list[bytes] = []
    while (line := incoming.readline().rstrip(b"\r\n")) or not lines:
        if not line:
            return []
        lines.append(line)
    return lines


def _value(head: list[bytes], name: bytes) -> bytes | None:
    for line in head[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return None


def _closing(answer: bytes) -> bytes:
    return answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    client.close()


def self_signed(directory: Path) -> tuple[Path, ssl.SSLContext]:
    """Return the certificate of a server on 127.0.0.1, that vouches for itself, and what serves it."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    options = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=pitr-test "
        "-addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(
        ["openssl", *options.split(), "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context
