"""A real S3 server in this process (moto's), behind a proxy that can fail as networks and stores do."""

from __future__ import annotations

import contextlib
import functools
import http.client
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import boto3
import pytest

from stylepairs.datagen.shell.storage import transfer

BUCKET = "bucket"
_KEPT = ("connection", "transfer-encoding", "keep-alive", "content-length", "date", "server")


@dataclass
class S3:
    """fails(method, path) -> "500", "slow", "truncated", "dropped", "unanswered" (done, but nobody is told) or None,
    asked for each request; seen: of each, its method and path."""

    port: int
    fails: Callable[[str, str], str | None] = lambda method, path: None
    seen: list[tuple[str, str]] = field(default_factory=list)

    @functools.cached_property
    def client(self):
        return boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{self.port}", region_name="us-east-1",
            aws_access_key_id="test", aws_secret_access_key="test",
        )  # fmt: skip

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Key -> bytes, below a prefix."""
        client = self.client
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = [each["Key"] for page in pages for each in page.get("Contents", ())]
        return {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def clear(self) -> None:
        self.fails = lambda method, path: None
        for key in self.objects():
            self.client.delete_object(Bucket=BUCKET, Key=key)
        self.fails = lambda method, path: None
        self.seen.clear()

    def fail_first(self, fault: str, count: int = 1, method: str = "GET", part: str = "") -> None:
        """The first requests of a method, for paths with a part, fail."""
        left = [count]

        def fails(asked: str, path: str) -> str | None:
            if asked == method and part in path and left[0]:
                left[0] -= 1
                return fault
            return None

        self.fails = fails


@contextlib.contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A server with one bucket, which the environment names, for processes started from here too."""
    from moto.server import ThreadedMotoServer

    behind = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    behind.start()
    s3 = S3(behind.get_host_and_port()[1])
    front = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(s3))
    threading.Thread(target=front.serve_forever, daemon=True).start()
    s3.client.create_bucket(Bucket=BUCKET)
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{front.server_address[1]}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    _forget_connections()
    try:
        yield s3
    finally:
        _forget_connections()
        front.shutdown()
        front.server_close()
        behind.stop()


def _forget_connections() -> None:
    """What is connected is connected to another server."""
    import s3fs

    transfer._opened.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


def _handler(s3: S3) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self._body()
            s3.seen.append((self.command, self.path))
            fault = s3.fails(self.command, self.path)
            if fault == "slow":
                time.sleep(0.7)
            if fault == "dropped":
                self.close_connection = True
                return
            if fault == "500":
                self._answer(500, {}, b"<Error><Code>InternalError</Code><Message>no</Message></Error>")
                return
            behind = http.client.HTTPConnection("127.0.0.1", s3.port)
            headers = {
                k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "content-length")
            }
            behind.request(self.command, self.path, body, headers)
            answer = behind.getresponse()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in _KEPT}
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            data = answer.read()
            behind.close()
            if fault == "unanswered":
                self.close_connection = True
                return
            self._answer(answer.status, kept, data, length, cut=fault == "truncated")

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            data = b""
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data

        def _answer(
            self, status: int, headers: dict, data: bytes, length: str | None = None, cut: bool = False
        ) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
            if cut:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    for method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.handle_any)
    return Handler
