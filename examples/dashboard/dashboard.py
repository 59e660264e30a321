"""A page that shows what Keyward does on a server, live.

python examples/dashboard/dashboard.py                                  http://127.0.0.1:8600/ shows the server on this machine
python examples/dashboard/dashboard.py --limit 'api:*' '100 EX 60'      and what remains of the limits of these keys
python examples/dashboard/dashboard.py --limit 'export:*' 'LIMIT 4'     and of these slots
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import limits as limiting
import traffic
from names import typed
from watcher import Watcher

PAGE = Path(__file__).resolve().parent / "page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/dashboard.css": ("dashboard.css", "text/css; charset=utf-8"),
    "/dashboard.js": ("dashboard.js", "text/javascript; charset=utf-8"),
}
LOOPBACK = ("127.0.0.1", "localhost")
HEADERS = {
    # Whatever a key is called, nothing but these three files runs, and nothing is asked of anybody else.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
LONGEST_TAG = 512  # bytes


class Handler(BaseHTTPRequestHandler):
    """GET of the page and of /state. There is nothing to write to."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    watcher: Watcher
    files: dict[str, tuple[bytes, str]]
    only_loopback: bool

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if self.only_loopback and not self._asked_as_loopback():
            # Else a web page anywhere could read this one, by a name of its own for 127.0.0.1.
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, b"ask for 127.0.0.1 or localhost\n", "text/plain")
        elif url.path == "/state":
            self._answer(HTTPStatus.OK, json.dumps(self._state(url.query)).encode(), "application/json")
        elif url.path in self.files:
            self._answer(HTTPStatus.OK, *self.files[url.path])
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"not found\n", "text/plain")

    def _asked_as_loopback(self) -> bool:
        return re.sub(r":\d*$", "", self.headers.get("Host", "")) in LOOPBACK

    def _state(self, query: str) -> dict:
        """The state, with what is known of the tag that is searched for."""
        name = typed(parse_qs(query).get("tag", [""])[0])
        state = self.watcher.state()
        return state | {"searched": self.watcher.tag(name)} if 0 < len(name) <= LONGEST_TAG else state

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        # A page that was closed does not read on.
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """A line a second for each page would be no log."""


class Limit(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        try:
            getattr(namespace, self.dest).append(limiting.parse(*values))
        except ValueError as error:
            parser.error(f"{option_string} {values[0]}: {error}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--url",
        default=os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"),
        help="default: $REDIS_URL, or the server on this machine",
    )
    parser.add_argument("--host", default="127.0.0.1", help="where the page listens (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8600, help="default: %(default)s; 0: any that is free")
    parser.add_argument(
        "--limit",
        action=Limit,
        nargs=2,
        default=[],
        metavar=("PATTERN", "LIMITS"),
        help="how much the limiters allow whose keys fit; may be given several times",
    )
    parser.add_argument("--traffic", action="store_true", help="open the shop of traffic.py on that server")
    return parser.parse_args()


@contextlib.contextmanager
def shop(url: str) -> Iterator[None]:
    program = Path(__file__).with_name("traffic.py")
    process = subprocess.Popen([sys.executable, program], env=os.environ | {"REDIS_URL": url})
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def serve(server: ThreadingHTTPServer, watcher: Watcher) -> None:
    """Until SIGTERM or Ctrl-C."""
    threading.Thread(target=watcher.run).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        watcher.stop()


def main() -> None:
    args = parse_arguments()
    known = args.limit + [limiting.parse(*limit) for limit in traffic.LIMITS.items() if args.traffic]
    Handler.watcher = Watcher(args.url, known)
    Handler.files = {path: ((PAGE / name).read_bytes(), kind) for path, (name, kind) in FILES.items()}
    Handler.only_loopback = args.host in LOOPBACK
    try:
        server = ThreadingHTTPServer((args.host, args.port), Handler)
    except OSError as error:
        sys.exit(f"dashboard: {args.host}:{args.port}: {error.strerror}")
    server.daemon_threads = True
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    print(f"dashboard: http://{args.host}:{server.server_port}/", flush=True)
    with shop(args.url) if args.traffic else contextlib.nullcontext():
        serve(server, Handler.watcher)


if __name__ == "__main__":
    main()
