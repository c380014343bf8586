"""Server of `noisetilt view`: pages of the runs in a folder, for browsers on this machine only."""

import functools
import html
import logging
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from ..checks import NoisetiltError
from .content import kind_of
from .render import PAGE, environment, render
from .tree import entries, stamp

_LOG = logging.getLogger(__name__)

HOST = "127.0.0.1"
"""The loopback address, the only one that the server listens on."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".md": "text/plain; charset=utf-8",
    ".mp4": "video/mp4",
    ".png": "image/png",
}
"""Files that are served, with their media types."""

_HEADERS = {
    # nothing may be loaded from elsewhere; Bokeh makes functions of text, its workers need no network
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data: blob:; media-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Server(ThreadingHTTPServer):
    """Server of the runs in a folder.

    Args:
        root: the folder; files outside of it are not served, also not by symbolic links.
        port: port on the loopback address; 0 for a free one.

    Raises:
        OSError: the port cannot be used.
    """

    daemon_threads = True

    def __init__(self, root: Path, port: int = 0) -> None:
        self.root = root.resolve(strict=True)
        self._making = threading.Lock()  # one page at a time: more would only be slower
        super().__init__((HOST, port), _Handler)

    def page(self, folder: Path, state: str) -> bytes:
        """Return the page of a folder's run. The last pages are kept; `state` changes with their files."""
        with self._making:
            return _page(folder, state, folder != self.root)

    @property
    def address(self) -> str:
        """Address of the first page."""
        return f"http://{HOST}:{self.server_port}/"

    @property
    def hosts(self) -> set[str]:
        """Values of the header Host that are answered. A page of another site has its own name there."""
        return {f"{name}:{self.server_port}" for name in (HOST, "localhost")}


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "noisetilt", ""
    timeout = 60

    def do_GET(self) -> None:
        """Answer with a page or a file."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answer with the headers of `do_GET`. No page is made for it."""
        self._answer()

    def _answer(self) -> None:
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            self._refuse(HTTPStatus.FORBIDDEN, f"This server answers to {self.server.address} only.")
            return
        try:
            parts = _parts(self.path)
            path = _inside(self.server.root, parts)
            if path is None:
                self._refuse(HTTPStatus.NOT_FOUND, "There is no such page or file.")
            elif path.is_dir() and not self.path.partition("?")[0].endswith("/"):
                self._redirect(f"/{quote('/'.join(parts))}/")
            elif path.is_dir() or path.name == PAGE:
                self._page(path if path.is_dir() else path.parent)
            else:
                self._file(path)
        except (NoisetiltError, OSError, ValueError) as error:
            if not isinstance(error, ConnectionError):
                self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"This run cannot be shown: {error}")

    def _page(self, folder: Path) -> None:
        """Send the page of a run's folder, or the list of runs. Its ETag is the state of the files."""
        state = stamp(folder)
        make: Callable[[Path, str], bytes]
        if kind_of(folder) is not None:
            make = self.server.page
        elif folder == self.server.root:
            make = _list
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "This folder has no run.")
            return
        self._send(_TYPES[".html"], lambda: make(folder, state), state)

    def _file(self, path: Path) -> None:
        media_type = _TYPES.get(path.suffix)
        if media_type is None or not path.is_file() or not _belongs_to_run(path, self.server.root):
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page or file.")
            return
        self._send(media_type, path.read_bytes)

    def _send(self, media_type: str, read: Callable[[], bytes], etag: str | None = None) -> None:
        body = read() if self.command == "GET" or etag is None else None
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", media_type)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        if etag is not None:
            self.send_header("ETag", etag)
        self.end_headers()
        if body is not None and self.command == "GET":
            self.wfile.write(body)

    def _redirect(self, address: str) -> None:
        self.send_response(HTTPStatus.MOVED_PERMANENTLY)
        self.send_header("Location", address)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        body = f"<!doctype html><title>{status.phrase}</title><p>{html.escape(sentence)}</p>\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", _TYPES[".html"])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        _LOG.debug(format, *args)


def _parts(address: str) -> list[str]:
    """Return the names in the path of an address."""
    return [unquote(part) for part in address.partition("?")[0].split("/") if part]


def _inside(root: Path, parts: list[str]) -> Path | None:
    """Return the path of names below a folder; None if there is none, if it is hidden, or not inside."""
    if any(part.startswith(".") or "/" in part or "\\" in part or "\0" in part for part in parts):
        return None
    path = root.joinpath(*parts)
    exists = path.parent.is_dir() if path.name == PAGE else path.exists()  # pages are made on request
    return path if exists and path.resolve().is_relative_to(root) else None


def _belongs_to_run(path: Path, root: Path) -> bool:
    """Return True for a file in the folder of a run, a comparison or an experiment, or in a subfolder."""
    folders = [path.parent, path.parent.parent]
    return any(folder.is_relative_to(root) and kind_of(folder) is not None for folder in folders)


@functools.lru_cache(maxsize=8)
def _page(folder: Path, state: str, home: bool) -> bytes:
    return render(folder, state, home).encode()


def _list(root: Path, state: str) -> bytes:
    template = environment().get_template("list.html.j2")
    return template.render(name=root.name, entries=entries(root), stamp=state).encode()
