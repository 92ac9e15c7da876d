"""A server that sends a part of a file over HTTP and then keeps the connection without a word."""

import http.server
import threading
from contextlib import contextmanager


@contextmanager
def serving(data, *parts, then_whole=False):
    """Address of a server whose first answers are the first `parts` bytes of `data`, one each.

    Later answers are like the last one, or, with `then_whole`, all of `data`.
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
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            try:
                self.wfile.write(data if whole else data[: parts[min(number, len(parts) - 1)]])
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
