"""Server of `noisetilt view`: what it serves, and above all what it does not serve."""

import http.client
import json
import platform
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_runs import add_particle, make_comparison, make_experiment, make_run, settings_of

from noisetilt_kernels.pages.server import Server
from noisetilt_kernels.pages.tree import entries, find, stamp
from noisetilt_kernels.runs.lock import locked


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of which each test has a copy."""
    path = tmp_path_factory.mktemp("made")
    (path / "secret.json").write_text("secret")
    make_run(path / "outside", settings_of())
    make_run(path / "runs" / "one", settings_of())
    make_comparison(path / "runs" / "comparison")
    make_experiment(path / "runs" / "papers" / "exp")
    return path


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """Folder with a run, a comparison and an experiment, and files that must not be seen beside it."""
    return shutil.copytree(made, tmp_path / "copy") / "runs"


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    """Server of the folder."""
    with Server(root) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of an answer. The path is sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def test_the_list_has_all_runs(server: Server) -> None:
    status, headers, body = ask(server, "/")
    text = body.decode()
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    for address in ("one", "comparison", "papers/exp", "papers/exp/ink", "papers/exp/symmetry"):
        assert f'href="{address}/index.html"' in text
    assert "comparison/base" not in text  # the page of the comparison links to it
    assert "6 of 6 images" in text and "<script>window.broken" not in text and "outside" not in text


@pytest.mark.parametrize(
    "path",
    ["/one/", "/one/index.html", "/comparison/", "/comparison/base/index.html", "/papers/exp/?x=1"],
)
def test_pages_are_made_on_request(server: Server, path: str) -> None:
    status, headers, body = ask(server, path)
    assert status == 200 and b"<figure " in body
    assert f'data-stamp="{headers["ETag"]}"'.encode() in body
    assert b'<a href="/">All runs</a>' in body
    assert not list(server.root.rglob("index.html"))  # nothing is written


def test_files_of_runs_are_served(server: Server) -> None:
    status, headers, body = ask(server, "/one/images/0000.png")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert body == (server.root / "one" / "images" / "0000.png").read_bytes()
    assert ask(server, "/comparison/ntrk-rho0.01/results.jsonl")[0] == 200
    status, headers, body = ask(server, "/one/images/0000.png", "HEAD")
    assert status == 200 and int(headers["Content-Length"]) > 0 and body == b""
    for path in ("/one", "//one", "/one?x=1"):
        status, headers, _ = ask(server, path)
        assert (status, headers["Location"]) == (301, "/one/")


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.json",
        "/one/../../secret.json",
        "/%2e%2e/secret.json",
        "/one/%2e%2e%2f%2e%2e%2fsecret.json",
        "/one/..%5c..%5csecret.json",
        "//secret.json",
        "/../outside/",
        "/../outside/images/0000.png",
        "/link/",
        "/link/images/0000.png",
        "/one/images/link.png",
        "/one/link.json",
        "/one/.lock",
        "/one/%00",
        "//[one",
        "*",
        "/one/latents/0000.safetensors",  # of no use to a page
        "/notes.json",  # in no run
        "/papers/",
        "/nothing/index.html",
        "/one/images/index.html",
    ],
)
def test_other_files_are_not_served(server: Server, path: str) -> None:
    root = server.root
    (root / "notes.json").write_text("secret")
    (root / "one" / ".lock").write_text("secret")
    (root / "link").symlink_to(root.parent / "outside")
    (root / "one" / "images" / "link.png").symlink_to(root.parent / "outside" / "images" / "0000.png")
    (root / "one" / "link.json").symlink_to(root.parent / "secret.json")
    status, _, body = ask(server, path)
    assert status == 404 and b"secret" not in body and b"<figure" not in body


def test_links_inside_of_the_folder_are_followed(server: Server) -> None:
    (server.root / "one" / "images" / "link.png").symlink_to(server.root / "one" / "images" / "0000.png")
    assert ask(server, "/one/images/link.png")[0] == 200


def test_no_link_out_of_the_folder_is_followed_by_a_page(server: Server) -> None:
    root = server.root
    outside = root.parent / "outside"
    shutil.rmtree(root / "one" / "images")
    (root / "one" / "images").symlink_to(outside / "images")
    status, _, body = ask(server, "/one/")
    assert (
        status == 200 and b'<img src="data:image' not in body and body.count(b"The file cannot be read") == 6
    )
    (root / "one" / "results.jsonl").unlink()
    (root / "one" / "results.jsonl").symlink_to(outside / "results.jsonl")
    shutil.rmtree(root / "comparison" / "base")
    (root / "comparison" / "base").symlink_to(outside)
    for path in ("/one/", "/comparison/"):
        status, _, body = ask(server, path)
        assert status == 500 and b"is a symbolic link out of" in body and b"<figure" not in body
    assert b"one/results.jsonl is a symbolic link out of" in ask(server, "/")[2]


def test_a_report_names_no_folder_outside(server: Server) -> None:
    exp = server.root / "papers" / "exp"
    make_comparison(server.root / "papers" / "other")
    shutil.copy(server.root / "papers" / "other" / "methods.json", server.root / "papers")
    shutil.move(server.root / "papers" / "other" / "base", server.root / "papers" / "base")
    report = json.loads((exp / "report.json").read_text())
    report["comparisons"][0]["name"] = ".."
    (exp / "report.json").write_text(json.dumps(report))
    assert ask(server, "/papers/exp/")[2].count(b"<section ") == 1


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost:1.evil.example", "::1", ""]
)
def test_other_hosts_are_refused(server: Server, host: str) -> None:
    for path in ("/", "/one/images/0000.png"):
        status, _, body = ask(server, path, Host=host)
        assert status == 403 and b"list" not in body and b"PNG" not in body


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1:1", "[::1]:8765", "localhost", "127.0.0.1"])
def test_forwarded_ports_are_answered(server: Server, host: str) -> None:
    assert ask(server, "/", Host=host)[0] == 200


def test_it_listens_on_loopback_only(server: Server) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_refused(server: Server, method: str) -> None:
    assert ask(server, "/one/", method)[0] == 501


def test_nothing_may_be_loaded_from_elsewhere(server: Server) -> None:
    for path in ("/", "/one/", "/one/images/0000.png", "/nothing"):
        policy = ask(server, path)[1]["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'") and "http" not in policy and "*" not in policy


def test_the_tag_changes_with_the_files(server: Server) -> None:
    settings = settings_of()
    folder = make_run(server.root / "new", settings, finished=2, ended=False)

    def tags() -> list[str]:
        return [ask(server, path, "HEAD")[1]["ETag"] for path in ("/", "/new/")]

    first = tags()
    assert tags() == first
    add_particle(folder, settings, 2)
    second = tags()
    with locked(folder.path):
        third = tags()
    changed = [first, second, third]
    assert all(len({one[place] for one in changed}) == 3 for place in (0, 1))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        lock = {"host": platform.node(), "process": process.pid}
        (folder.path / ".lock").write_text(json.dumps(lock))
        alive = tags()
        assert b"Running now" in ask(server, "/new/")[2]
        process.kill()
    assert all(before != after for before, after in zip(alive, tags(), strict=True))
    assert b"Running now" not in ask(server, "/new/")[2]
    assert b"Image 2 of" in ask(server, "/new/")[2]


def test_a_damaged_run_says_why(server: Server) -> None:
    (server.root / "one" / "results.jsonl").write_text('{"particle": "<b>"}\n')
    status, _, body = ask(server, "/one/")
    assert status == 500 and b"results.jsonl, line 1" in body and b"<b>" not in body
    (server.root / "one" / "run.json").write_text("{}")
    assert ask(server, "/one/")[1]["Refresh"]  # it may be whole at the next try
    status, _, body = ask(server, "/")
    assert status == 200 and b"cannot be read" in body


def test_any_error_has_an_answer(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    (server.root / "one" / "summary.json").write_text('{"peak_memory": []}')
    status, _, body = ask(server, "/one/")
    assert status == 500 and b"This run cannot be shown: TypeError" in body
    assert caplog.records[-1].exc_info is not None


@pytest.mark.parametrize("error", [TimeoutError, ConnectionResetError])
def test_an_answer_has_one_header(
    server: Server, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    def write(self: object, data: bytes) -> int:
        if b"<figure" in data:
            self._sock.sendall(data[:100])
            raise error
        return self._sock.sendall(data) or len(data)

    monkeypatch.setattr("socketserver._SocketWriter.write", write)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as connection:
        connection.sendall(b"GET /one/ HTTP/1.0\r\nHost: localhost\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.count(b"HTTP/1.0 ") == 1 and received.startswith(b"HTTP/1.0 200")


def test_lines_that_are_merged_while_they_are_read(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = server.root / "one" / "results-1.jsonl"
    extra.write_text("")
    read_bytes = Path.read_bytes

    def read(path: Path) -> bytes:
        if path == extra:
            path.unlink()
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert ask(server, "/one/")[0] == 200 and not extra.exists()


def test_a_run_itself_is_the_first_page(root: Path) -> None:
    with Server(root / "one") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert b"<figure " in ask(server, "/")[2]
        assert ask(server, "/images/0001.png")[0] == 200
        assert ask(server, "/../comparison/")[0] == 404
        assert b"All runs" not in ask(server, "/")[2]
        server.shutdown()


def test_folders_that_are_searched(root: Path) -> None:
    (root / "loop").symlink_to(root)
    make_run(root / ".hidden" / "run", settings_of())
    make_run(root / "a" / "b" / "c" / "d" / "e" / "f" / "too deep", settings_of())
    found = {str(path.relative_to(root)): kind for path, kind in find(root)}
    assert found["one"] == "run" and found["papers/exp"] == "experiment"
    assert found["papers/exp/ink"] == "comparison" and found["papers/exp/ink/base"] == "run"
    assert not any("loop" in name or "hidden" in name or "too deep" in name for name in found)
    depths = {entry.address: entry.depth for entry in entries(root)}
    assert depths["papers/exp/index.html"] == 0 and depths["papers/exp/ink/index.html"] == 1
    assert stamp(root) == stamp(root)


def test_a_run_is_shown_as_running(root: Path) -> None:
    assert not any(entry.running for entry in entries(root))
    with locked(root / "papers" / "exp" / "ink" / "base"):
        running = [entry.address for entry in entries(root) if entry.running]
    assert running == ["papers/exp/index.html", "papers/exp/ink/index.html"]
    assert json.loads((root / "papers" / "exp" / "report.json").read_text())["title"] == "Two tables"
