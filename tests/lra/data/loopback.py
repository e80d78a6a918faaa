"""A server on this machine that breaks off, lies and forgets, as told."""

import contextlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Answers by a list of behaviours, one for each request; the last one stays.

    The content is that of every file, or a mapping from the names of files.
    """

    def __init__(self, content):
        self.content, self.behaviours, self.ranges = content, ["good"], []
        self.headers, self.linked = {}, {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.ranges.append(self.headers.get("Range"))
                behaviour = server.behaviours.pop(0) if len(server.behaviours) > 1 else server.behaviours[0]
                server.answer(self, behaviour)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/folder"

    def answer(self, handler, behaviour):
        if isinstance(behaviour, int):
            handler.send_error(behaviour)
            return
        if isinstance(behaviour, bytes):  # the whole answer as it goes over the wire
            handler.wfile.write(behaviour)
            return
        if behaviour in ("drip", "drip headers"):
            start = b"HTTP/1.0 200 OK\r\n" + (b"" if behaviour == "drip headers" else b"Content-Length: 400000\r\n\r\n")
            handler.wfile.write(start)
            with contextlib.suppress(OSError):
                for _ in range(200):
                    handler.wfile.write(b"x")
                    handler.wfile.flush()
                    time.sleep(0.02)
            return
        if behaviour.startswith("redirect "):
            handler.send_response(302)
            handler.send_header("Location", behaviour.partition(" ")[2])
            for name, value in self.linked.items():
                handler.send_header(name, value)
            handler.end_headers()
            return
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range") or "")
        content = self.content
        if not isinstance(content, bytes):
            content = content[handler.path.rpartition("/")[2]]
        start = int(asked[1]) if asked and behaviour != "no range" else 0
        if start >= len(content):
            handler.send_response(416)
            for name, value in self.headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Range", f"bytes */{len(content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if behaviour == "earlier" and start:
            start -= 1000
        handler.send_response(206 if asked and behaviour != "no range" else 200)
        if asked and behaviour != "no range":
            shown = start + 7 if behaviour == "later" else start
            handler.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}")
        for name, value in self.headers.items():
            handler.send_header(name, value)
        body = content[start:]
        if behaviour != "no length":
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if behaviour == "break":
            body = body[: len(body) // 2]
        if behaviour == "wrong":
            body = bytes(len(body))
        handler.wfile.write(body)

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
