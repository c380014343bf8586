"""Server of `noisetilt view`: pages of the runs in a folder, for browsers on this machine only."""

import functools
import html
import logging
import re
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from ..checks import NoisetiltError
from .content import kind_of
from .render import PAGE, environment, render
from .tree import check_links, entries, stamp

_LOG = logging.getLogger(__name__)

HOST = "127.0.0.1"
"""The loopback address, the only one that the server listens on."""

_OWN_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.ASCII)
"""Values of the header Host that are answered. A page of another site has its own name there.

The port may be any: `ssh -L` forwards another one to that of the server.
"""

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
            check_links(folder, self.root)
            return _page(folder, state, self.root)

    @property
    def address(self) -> str:
        """Address of the first page."""
        return f"http://{HOST}:{self.server_port}/"


class _Answer(NamedTuple):
    """Answer to a request."""

    status: HTTPStatus
    headers: Mapping[str, str]
    body: bytes | None = b""
    """None if it is not made, because only the headers are asked for."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "noisetilt", ""
    timeout = 60

    def do_GET(self) -> None:
        """Answer with a page or a file."""
        self._send(self._answer())

    def do_HEAD(self) -> None:
        """Answer with the headers of `do_GET`. No page is made for it."""
        self._send(self._answer())

    def _answer(self) -> _Answer:
        try:
            return self._found()
        except Exception as error:  # odd files cause errors of many classes
            if isinstance(error, (NoisetiltError, OSError)):
                why = str(error)
            else:
                why = f"{type(error).__name__}: {error}"
                _LOG.exception("%s cannot be shown", self.path)
            # the next try may find whole files
            return _sentence(
                HTTPStatus.INTERNAL_SERVER_ERROR, f"This run cannot be shown: {why}", {"Refresh": "5"}
            )

    def _found(self) -> _Answer:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not _OWN_HOST.fullmatch(hosts[0]):
            return _sentence(HTTPStatus.FORBIDDEN, f"This server answers to {self.server.address} only.")
        parts = _parts(self.path)
        path = _inside(self.server.root, parts)
        if path is None:
            return _NO_FILE
        if path.is_dir() and not self.path.partition("?")[0].endswith("/"):
            return _Answer(HTTPStatus.MOVED_PERMANENTLY, {"Location": f"/{quote('/'.join(parts))}/"})
        if path.is_dir() or path.name == PAGE:
            return self._page(path if path.is_dir() else path.parent)
        return self._file(path)

    def _page(self, folder: Path) -> _Answer:
        """Return the page of a run's folder, or the list of runs. Its ETag is the state of the files."""
        state = stamp(folder)
        make: Callable[[Path, str], bytes]
        if kind_of(folder) is not None:
            make = self.server.page
        elif folder == self.server.root:
            make = _list
        else:
            return _sentence(HTTPStatus.NOT_FOUND, "This folder has no run.")
        headers = {"Content-Type": _TYPES[".html"], "ETag": state}
        return _Answer(HTTPStatus.OK, headers, make(folder, state) if self.command == "GET" else None)

    def _file(self, path: Path) -> _Answer:
        media_type = _TYPES.get(path.suffix)
        if media_type is None or not path.is_file() or not _belongs_to_run(path, self.server.root):
            return _NO_FILE
        return _Answer(HTTPStatus.OK, {"Content-Type": media_type}, path.read_bytes())

    def _send(self, answer: _Answer) -> None:
        """Send an answer. Nothing can be sent after an error here, so none is answered."""
        try:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.body is not None:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command == "GET" and answer.body:
                self.wfile.write(answer.body)
        except ConnectionError:  # the browser has gone; the base class handles timeouts
            self.close_connection = True

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        _LOG.debug(format, *args)


def _sentence(
    status: HTTPStatus, sentence: str, headers: Mapping[str, str] = MappingProxyType({})
) -> _Answer:
    body = f"<!doctype html><title>{status.phrase}</title><p>{html.escape(sentence)}</p>\n".encode()
    return _Answer(status, {"Content-Type": _TYPES[".html"], **headers}, body)


_NO_FILE = _sentence(HTTPStatus.NOT_FOUND, "There is no such page or file.")


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
def _page(folder: Path, state: str, root: Path) -> bytes:
    return render(folder, state, root).encode()


def _list(root: Path, state: str) -> bytes:
    template = environment().get_template("list.html.j2")
    return template.render(name=root.name, entries=entries(root), stamp=state).encode()
