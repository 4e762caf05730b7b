"""A server on this machine that serves one file, well or as badly as its script says."""

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Answer:
    """How one request is answered; where nothing is said, as it should be.

    `cut` ends the body after so many bytes, by closing the connection or as `then` says: "hang" up
    the client, "drip" a byte now and then, or go on with "zeros" for ever. `headers` replace those
    of the same name; one that is None is left out. `ranges` of a server that knows none are
    ignored. `held` is an event to wait for before anything is said.
    """

    status: int | None = None
    body: bytes | None = None
    cut: int | None = None
    then: str = "close"
    headers: Mapping[str, str | None] = field(default_factory=dict)
    ranges: bool = True
    held: threading.Event | None = None


class Server:
    """Serve `data` at `url`, under the tag `etag`, if it has one; `asked` are the ranges asked for.

    The first requests are answered as `script` says, later ones as they should be.
    """

    def __init__(self, data: bytes):
        self.data = data
        self.etag: str | None = '"one"'
        self.script: list[Answer] = []
        self.asked: list[str | None] = []
        self.conditions: list[str | None] = []
        self._stop = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                with suppress(BrokenPipeError, ConnectionResetError):
                    server._answer(self)

            def log_message(self, *arguments):
                pass

        self._host = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._host.server_address[1]}/file"
        # asks often whether to stop, so that a test does not wait for it
        threading.Thread(target=self._host.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Let hanging answers go and stop."""
        self._stop.set()
        self._host.shutdown()
        self._host.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
        self.asked.append(asked)
        self.conditions.append(condition)
        answer = self.script.pop(0) if self.script else Answer()
        if answer.held:
            answer.held.wait()
        status, body, headers = 200, self.data, {}
        if asked and answer.ranges and condition in (None, self.etag):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.data):
                status, body = 416, b""
                headers["Content-Range"] = f"bytes */{len(self.data)}"
            else:
                status, body = 206, self.data[start:]
                last = len(self.data) - 1
                headers["Content-Range"] = f"bytes {start}-{last}/{len(self.data)}"
        if answer.body is not None:
            body = answer.body
        headers |= {"Content-Length": str(len(body)), "ETag": self.etag} | answer.headers
        handler.send_response(answer.status or status)
        for name, value in headers.items():
            if value is not None:
                handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body[: answer.cut])
        while answer.then != "close" and not self._stop.wait(0.02 if answer.then == "drip" else 0):
            if answer.then == "hang":
                self._stop.wait()
            else:
                handler.wfile.write(b"\0" if answer.then == "drip" else bytes(1 << 16))
