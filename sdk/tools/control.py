"""Lets a suite kill the server and start it again, over plain HTTP on loopback."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lib.stage import Stage


class Control:
    """`POST /kill` and `POST /start`; they answer when it is done. `close` ends it."""

    def __init__(self, stage: Stage):
        actions = {"/kill": stage.kill_server, "/start": stage.start_server}

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                """Nothing to tell."""

            def do_POST(self):
                action = actions.get(self.path)
                status = 404
                if action is not None:
                    action()
                    status = 204
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
