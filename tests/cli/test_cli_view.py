"""`noisetilt view` as a command, and the page that `noisetilt sample` writes."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made_runs import make_run, settings_of

from noisetilt_cli import main
from noisetilt_kernels.pages import packages, render


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_it_serves_until_ctrl_c(tmp_path: Path) -> None:
    make_run(tmp_path / "run", settings_of(), finished=1, ended=False)
    command = [sys.executable, "-u", "-m", "noisetilt_cli", "view", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            (port,) = re.findall(r"http://127\.0\.0\.1:(\d+)/", line)
            connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
            connection.request("GET", "/run/")
            assert b"<figure " in connection.getresponse().read()
        finally:
            process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in output + errors


def test_wrong_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "nothing", __file__):
        result = invoke("view", path)
        assert result.exit_code == 2 and f"{path} is not a folder; name one" in result.output
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = invoke("view", tmp_path, "--port", taken.getsockname()[1])
    assert result.exit_code == 1 and "cannot be used (Address already in use)" in result.output
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "bokeh" else object())
    result = invoke("view", tmp_path)
    assert result.exit_code == 1
    assert result.output == 'Error: view needs bokeh: pip install "noisetilt-kernels[page]"\n'


def test_a_base_installation_is_told_what_to_install(tmp_path: Path) -> None:
    absent = ("PIL", "bokeh", "jinja2", "diffusers", "transformers", "accelerate", "peft", "ftfy")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); from noisetilt_cli import main; main()"
    command = [sys.executable, "-c", code, "view", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == 'Error: view needs pillow: pip install "noisetilt-kernels[page]"\n'


def test_the_browser_is_opened_on_request_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("noisetilt_kernels.pages.server.Server.serve_forever", lambda self: None)
    assert invoke("view", tmp_path, "--port", 0).exit_code == 0 and opened == []
    result = invoke("view", tmp_path, "--port", 0, "--open")
    assert result.exit_code == 0 and len(opened) == 1 and opened[0] in result.output


SAMPLE = ["sample", "--model", "digits", "--prompt", "a 7", "--reward", "brightness", "--method"]


def test_a_run_has_a_page_and_its_plan(tmp_path: Path) -> None:
    result = invoke(*SAMPLE, "ntrk:steps=40", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    html = (tmp_path / "run" / "index.html").read_text()
    assert html.count("<figure ") == 1 and "What went wrong" not in html
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["memory"] > 1e6 and 0 < plan["seconds"] < 1e3
    # a finished run that is resumed measures nothing, and keeps the time
    assert invoke("sample", "--resume", "--out", tmp_path / "run").exit_code == 0
    assert json.loads((tmp_path / "run" / "plan.json").read_text()) == plan


def test_a_run_without_bokeh_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "bokeh" else object())
    render._say_missing.cache_clear()
    result = invoke(*SAMPLE, "base:steps=2", "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert (tmp_path / "run" / "summary.json").exists() and not (tmp_path / "run" / "index.html").exists()
