"""A server on this machine that breaks off, lies and forgets, as told."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Answers by a list of behaviours, one for each request; the last one stays."""

    def __init__(self, content):
        self.content, self.behaviours, self.ranges = content, ["good"], []
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
        if behaviour.startswith("redirect "):
            handler.send_response(302)
            handler.send_header("Location", behaviour.partition(" ")[2])
            handler.end_headers()
            return
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range") or "")
        start = int(asked[1]) if asked and behaviour != "no range" else 0
        if start >= len(self.content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if behaviour == "earlier" and start:
            start -= 1000
        handler.send_response(206 if asked and behaviour != "no range" else 200)
        if asked and behaviour != "no range":
            shown = start + 7 if behaviour == "later" else start
            handler.send_header("Content-Range", f"bytes {shown}-{len(self.content) - 1}/{len(self.content)}")
        body = self.content[start:]
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
