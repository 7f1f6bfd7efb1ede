"""A server that speaks the file protocol of the Hugging Face Hub, on 127.0.0.1."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from resnext_jax.interop.files import write_state_dict
from resnext_jax.models.resnext import NetworkSpec
from tests.interop.weights import random_state_dict

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# Of every repository here.
IMAGES: dict[str, Any] = {
    "tag": "test",
    "input_size": [3, 32, 32],
    "interpolation": "bilinear",
    "crop_pct": 0.9,
    "crop_mode": "center",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.25, 0.2, 0.125],
    "num_classes": 3,
    "license": "cc-by-nc-4.0",
}


class Hub:
    """Repositories by name, and what goes wrong.

    Attributes:
      repositories: the files of each by name.
      trouble: what happens to weights that are fetched: "", "500", "stall", or "cut".
      fetched: names of the files that were sent so far.
      requests: number of requests so far.
      port: of 127.0.0.1; 0 before the first start.
    """

    def __init__(self) -> None:
        """Make a server of nothing, that is not started."""
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.trouble, self.fetched, self.requests, self.port = "", list[str](), 0, 0

    def add(self, name: str, spec: NetworkSpec, folder: Path, **config: Any) -> Path:
        """Publish random weights of a network; return their file."""
        folder.mkdir(exist_ok=True)
        file = folder / f"{name}.safetensors"
        write_state_dict(random_state_dict(spec), file)
        architecture, classes = name.partition(".")[0], spec.num_classes
        described = {"architecture": architecture, "num_classes": classes, "pretrained_cfg": IMAGES}
        self.repositories[f"timm/{name}"] = {
            "config.json": json.dumps(described | config).encode(),
            "model.safetensors": file.read_bytes(),
        }
        return file

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Serve, at the port of before if there was one."""
        hub, ended = self, threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None:
                """Print nothing."""

            def do_HEAD(self) -> None:
                hub._answer(self, ended, body=False)

            def do_GET(self) -> None:
                hub._answer(self, ended, body=True)

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            ended.set()
            server.shutdown()
            server.server_close()
            thread.join()

    def _answer(
        self, handler: BaseHTTPRequestHandler, ended: threading.Event, *, body: bool
    ) -> None:
        self.requests += 1
        parts = handler.path.strip("/").split("/")
        headers = {"X-Repo-Commit": COMMIT}
        if self.trouble == "500":
            return _send(handler, 500, headers, b"", body)
        redirected = parts[0] == "storage"
        *repository, name = (*parts[redirected:][:2], parts[-1])
        files = self.repositories.get("/".join(repository))
        if files is None or name not in files:
            code = "RepoNotFound" if files is None else "EntryNotFound"
            return _send(handler, 404, headers | {"X-Error-Code": code}, b"", body)
        data = files[name]
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(data).hexdigest()
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            if not redirected:
                headers["Location"] = f"/storage/{'/'.join(repository)}/{name}"
                return _send(handler, 302, headers, b"", body)
        else:
            blob = b"blob %d\0" % len(data) + data
            headers["ETag"] = f'"{hashlib.sha1(blob).hexdigest()}"'
        if body and redirected and self.trouble:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[: len(data) // 2 if not handler.headers["Range"] else 0])
            if self.trouble == "stall":
                handler.wfile.flush()
                ended.wait()
            return None
        if body:
            self.fetched.append(name)
        return _send(handler, 200, headers, data, body)


def _send(
    handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], data: bytes, body: bool
) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    if body:
        handler.wfile.write(data)
