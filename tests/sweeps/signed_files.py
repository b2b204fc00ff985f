"""An HTTP server that gives a file only to requests whose query has the right token, as stores with presigned URLs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@contextmanager
def signed_file(name: str, content: bytes, *, token: str) -> Iterator[str]:
    """Address of the file, without a query."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            parts = urlsplit(self.path)
            is_allowed = parse_qs(parts.query).get("token") == [token]
            self.send_response(404 if parts.path != f"/{name}" else 200 if is_allowed else 403)
            self.send_header("Content-Length", str(len(content) if is_allowed else 0))
            self.send_header("ETag", '"1"')
            self.end_headers()
            if self.command == "GET" and is_allowed:
                self.wfile.write(content)

        do_GET = do_HEAD

        def log_message(self, *arguments: object) -> None:
            """Requests are not printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/{name}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
