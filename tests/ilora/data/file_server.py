"""A server of one file on this machine, which misbehaves as asked."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ilora.data.download import Published

CONTENT = bytes(range(256)) * 4096  # a mebibyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Behaviour:
    """What the server does, and what it was asked."""

    content: bytes = CONTENT
    tag: str | None = '"first"'
    modified: str | None = None
    ranges: bool = True  # whether it honours Range
    wrong_part: bool = False
    closes_after: list[int] = field(default_factory=list)  # bytes of each answer, then closes
    status: list[int] = field(default_factory=list)  # of the answers to come, before sound ones
    asked: list[str | None] = field(default_factory=list)  # the Range of every request
    url: str = ""

    def file(self, sha256: str | None = SHA256) -> Published:
        return Published(self.url, sha256)


@contextmanager
def serving() -> Iterator[Behaviour]:
    """A server on localhost and its behaviour."""
    behaviour = Behaviour()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            behaviour.asked.append(asked)
            if behaviour.status:
                self.send_error(behaviour.status.pop(0))
                return
            content, start = behaviour.content, 0
            same = self.headers.get("If-Range") in (behaviour.tag, behaviour.modified)
            if asked and behaviour.ranges and same:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    self.send_error(416)
                    return
                start -= behaviour.wrong_part
                self.send_response(206)
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content) - start))
            for name, value in (("ETag", behaviour.tag), ("Last-Modified", behaviour.modified)):
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            end = behaviour.closes_after.pop(0) if behaviour.closes_after else len(content)
            self.wfile.write(content[start : start + end])

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        behaviour.url = f"http://127.0.0.1:{running.server_port}/some.zip"
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield behaviour
        running.shutdown()
        thread.join()
