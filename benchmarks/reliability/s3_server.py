"""An S3 server on this machine, and a proxy in front of it that cuts connections or answers slowly.

The server is moto's, in a process of its own; objects are put and read over plain HTTP.
"""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

HOST, BUCKET = "127.0.0.1", "hospital"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
        return port


def environment(port: int) -> dict[str, str]:
    """What makes a command find the server, or the proxy, at `port`."""
    return {
        **os.environ,
        "AWS_ENDPOINT_URL": f"http://{HOST}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",  # s3fs tries again by itself
    }


class S3Server:
    """The server with one bucket; use it in a `with` statement."""

    def __enter__(self) -> "S3Server":
        self.port = free_port()
        command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(self.port)]
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdout=null, stderr=null)
        deadline = time.monotonic() + 100
        while True:
            try:
                self._ask("PUT", BUCKET)
                return self
            except OSError:
                assert self.process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def _ask(self, method: str, path: str, data: bytes | None = None) -> bytes:
        url = f"http://{HOST}:{self.port}/{path}"
        request = urllib.request.Request(url, data, method=method)
        request.add_header("Content-Type", "application/octet-stream")
        request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=test/1/us-east-1/s3/aws4")
        with urllib.request.urlopen(request, timeout=60) as answer:
            content: bytes = answer.read()
            return content

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""
        self._ask("PUT", f"{BUCKET}/{key}", content)

    def put_folder(self, key: str, folder: Path) -> None:
        """Write the files of a folder as objects below `key`."""
        for path in folder.iterdir():
            self.put(f"{key}/{path.name}", path.read_bytes())

    def get(self, key: str) -> bytes:
        """Read an object."""
        return self._ask("GET", f"{BUCKET}/{key}")

    def delete(self, key: str) -> None:
        """Delete an object."""
        self._ask("DELETE", f"{BUCKET}/{key}")

    def begin_upload(self, key: str) -> None:
        """Begin an upload in parts, as a call that is killed before it completes it."""
        self._ask("POST", f"{BUCKET}/{key}?uploads")

    def unfinished(self) -> list[str]:
        """Keys of the uploads that were begun and neither completed nor aborted."""
        return re.findall("<Key>([^<]+)</Key>", self._ask("GET", f"{BUCKET}?uploads").decode())

    def objects(self, prefix: str) -> dict[str, bytes]:
        """The objects below a prefix, by the rest of their key."""
        listing = self._ask("GET", f"{BUCKET}?list-type=2&max-keys=1000&prefix={prefix}/").decode()
        keys = re.findall(r"<Key>([^<]+)</Key>", listing)
        return {key.removeprefix(f"{prefix}/"): self.get(key) for key in keys}


class Proxy:
    """Passes bytes on to a port; use it in a `with` statement.

    Args:
        port: Of the server.
        budget: Bytes that it passes on in all; then every connection is cut, new ones as well.
            None: no limit.
        connection: Bytes after which each connection is cut, for as often as `cuts`.
        cuts: Connections that are cut so.
        delay_s: Seconds that it waits with every chunk of an answer.
        chunk: Bytes that it passes on at once.
    """

    def __init__(
        self,
        port: int,
        *,
        budget: int | None = None,
        connection: int | None = None,
        cuts: int = 0,
        delay_s: float = 0,
        chunk: int = 2048,
    ) -> None:
        self._target, self.budget, self.connection = port, budget, connection
        self.cuts, self.delay_s, self._chunk = cuts, delay_s, chunk
        self.was_cut = 0
        self._lock = threading.Lock()

    def __enter__(self) -> "Proxy":
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed: the end
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((HOST, self._target))
                pair = _Pair(client, server)
                for back in (False, True):
                    threading.Thread(target=self._pass_on, args=(pair, back), daemon=True).start()

    def _pass_on(self, pair: "_Pair", back: bool) -> None:
        source, target = (pair.server, pair.client) if back else (pair.client, pair.server)
        with contextlib.suppress(OSError):
            while part := source.recv(self._chunk):
                if back and self.delay_s:
                    time.sleep(self.delay_s)
                if not self._allows(pair, len(part)):
                    break
                target.sendall(part)
        pair.close()

    def _allows(self, pair: "_Pair", size: int) -> bool:
        with self._lock:
            pair.passed += size
            if self.budget is not None:
                self.budget -= size
                if self.budget < 0:
                    self.was_cut += 1
                    return False
            if self.connection is not None and pair.passed > self.connection and self.cuts:
                self.cuts -= 1
                self.was_cut += 1
                return False
            return True


class _Pair:
    """A connection of a client and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server, self.passed = client, server, 0

    def close(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
                end.close()
