"""A server that sends a part of a file over HTTP and then keeps the connection without a word."""

import http.server
import threading
from contextlib import contextmanager


@contextmanager
def serving(data, *parts, then_whole=False, ranges=False):
    """Address of a server whose first answers are the first `parts` bytes of `data`, one each.

    Later answers are like the last one, or, with `then_whole`, all of `data`. With `ranges` the
    bytes from a number on can be asked for.
    """
    over, asked = threading.Event(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_GET(self):
            number = len(asked)
            asked.append(self.path)
            whole = then_whole and number >= len(parts)
            begin = self.headers.get("Range", "bytes=0-")[6:].partition("-")[0]
            begin = int(begin) if ranges else 0
            self.send_response(206 if ranges else 200)
            if ranges:
                self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - begin))
            self.end_headers()
            most = len(data) if whole else parts[min(number, len(parts) - 1)]
            try:
                self.wfile.write(data[begin:most])
                self.wfile.flush()
            except OSError:
                return
            if not whole:
                over.wait(60)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/clip.ts"
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()
