"""Pages of runs as files: what they say, what they hold, and that a run never fails because of them."""

import base64
import io
import json
import logging
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from made_runs import STEPS, add_particle, make_comparison, make_experiment, make_run, settings_of
from PIL import Image

from noisetilt_kernels.pages import content, packages, render
from noisetilt_kernels.pages.content import read_page
from noisetilt_kernels.pages.render import PAGE, write_page
from noisetilt_kernels.pages.tree import entries
from noisetilt_kernels.runs.folder import Planned
from noisetilt_kernels.runs.lock import locked


def visible(html: str) -> str:
    """Return a page without scripts and styles."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)


def test_a_run_has_its_images_scores_settings_and_cost(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", settings_of())
    folder.write_plan(Planned(memory=2_500_000, seconds=3.0))
    html = visible(render.render(folder.path))
    assert html.count("<figure ") == 6 and html.count('src="data:image/png;base64,') == 6
    assert 'href="images/0004.png"' in html and "reward 0.3\n" in html and "digit-judge 0.5\n" in html
    (alt,) = re.findall(r'alt="(Image 1 of ntrk[^"]*)"', html)
    assert "a handwritten seven" in alt and "reward 0.15" in alt
    for text in ("1.2 s</td><td>3 s", "2.5 MB", "no GPU", "<dt>model</dt><dd>digits", "rho=0.01", "150"):
        assert text in html, text
    assert "What went wrong" not in html and "Running now" not in html
    with locked(folder.path):  # as when the run writes its page
        html = visible(render.render(folder.path))
    assert "Running now" not in html and "6 images, finished" in html


def test_the_page_needs_no_other_file_and_no_network(tmp_path: Path) -> None:
    make_comparison(tmp_path / "comparison")
    write_page(tmp_path / "comparison")
    html = (tmp_path / "comparison" / PAGE).read_text()
    loaded = re.findall(r'<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)="([^"]*)"', html)
    assert loaded and all(address.startswith("data:") for address in loaded)
    assert "@import" not in html and "cdn.bokeh.org" not in html
    assert "ntrk-rho0.01/images/0000.png" in html and 'href="base/index.html"' in html


def test_prompts_are_text(tmp_path: Path) -> None:
    make_comparison(tmp_path / "comparison")
    html = render.render(tmp_path / "comparison")
    assert "<script>window.broken" not in html
    assert "&lt;script&gt;window.broken" in visible(html)


def test_images_are_small_on_the_page(tmp_path: Path) -> None:
    make_run(tmp_path / "run", settings_of(particles=1), side=1024)
    original = (tmp_path / "run" / "images" / "0000.png").stat().st_size
    html = visible(render.render(tmp_path / "run"))
    pictures = [base64.b64decode(data) for data in re.findall(r"data:image/jpeg;base64,([^\"]+)", html)]
    assert len(pictures) == 2 and all(len(data) < original / 50 for data in pictures)
    assert {Image.open(io.BytesIO(data)).size for data in pictures} == {(192, 192)}


def test_small_images_of_many_bytes_are_compressed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", settings_of(particles=1), side=192)
    assert folder.image_file(0).stat().st_size > 100_000
    html = visible(render.render(folder.path))
    pictures = [base64.b64decode(data) for data in re.findall(r"data:image/jpeg;base64,([^\"]+)", html)]
    assert len(pictures) == 2 and all(len(data) < 50_000 for data in pictures)
    assert {Image.open(io.BytesIO(data)).size for data in pictures} == {(192, 192)}


def test_the_page_has_a_largest_number_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_comparison(tmp_path / "comparison")
    monkeypatch.setattr(content, "MOST_IMAGES", 6)
    html = visible(render.render(tmp_path / "comparison"))
    ids = re.findall(r'<figure id="image-0-(\d)-(\d)"', html)
    # the first image of each prompt and method, then the second ones
    assert sorted(ids) == [("0", "0"), ("0", "1"), ("0", "3"), ("1", "0"), ("1", "1"), ("1", "3")]
    assert "This page has 6 of 12 images" in html


def test_failures_are_in_plain_words(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", settings_of(), fallbacks=[0, 2], peaks=[1, 50.5, 3.5])
    (folder.path / "images" / "0003.png").write_bytes(b"no image")
    html = visible(render.render(folder.path))
    assert "ntrk: 2 steps of 2 images left unguided: gradient is not finite." in html
    assert "ntrk: 2 of 6 images probably destroyed" in html and "noise peak up to 50.5" in html
    assert html.count("1 step unguided: gradient is not finite") == 2
    assert "probably destroyed: noise peak 3.5" in html
    assert html.count("The file cannot be read") == 1 and html.count("<figure ") == 6


def test_rewards_that_are_not_finite(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", settings_of())
    lines = (folder.path / "results.jsonl").read_text().replace('"reward": 0.1,', '"reward": null,')
    (folder.path / "results.jsonl").write_text(lines)
    html = visible(render.render(folder.path))
    assert "ntrk: the reward of 1 image is not finite." in html and "reward not finite" in html
    # the best one of the first prompt is another one
    assert re.findall(r"(\d{4}) <b>best</b>", html) == ["0002", "0005"]


def test_a_part_of_a_run_is_shown_as_it_is(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", settings_of(), finished=2, ended=False)
    html = visible(render.render(folder.path))
    assert html.count("<figure ") == 3 and "Not finished: 2 steps" in html
    assert "ntrk: stopped after 2 of 6 images" in html and "--resume" in html
    with locked(folder.path):
        html = visible(render.render(folder.path))
    assert "Running now" in html and "2 of 6 images, running" in html and "stopped" not in html
    with (folder.path / "results.jsonl").open("a") as file:
        file.write('{"particle": 2, "prom')  # a line that is being written
    assert visible(render.render(folder.path)).count("<figure ") == 3


def test_a_run_without_any_step(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", settings_of(), finished=0, ended=False)
    (folder.path / "records.jsonl").unlink()
    assert "No image is finished." in visible(render.render(folder.path))


def test_methods_that_have_not_begun(tmp_path: Path) -> None:
    make_comparison(tmp_path / "comparison", ["base", "ntrk:rho=0.01", "dps:strength=3"])
    (tmp_path / "comparison" / "dps-strength3" / "run.json").unlink()
    html = visible(render.render(tmp_path / "comparison"))
    assert "dps:strength=3: not begun." in html and html.count("<figure ") == 12
    # a comparison opens all folders at its start
    shutil.rmtree(tmp_path / "comparison" / "dps-strength3")
    folder = make_run(
        tmp_path / "comparison" / "dps-strength3", settings_of("dps:strength=3"), finished=0, ended=False
    )
    folder.records_file.unlink()
    with locked(folder.path):
        html = visible(render.render(tmp_path / "comparison"))
    assert "0 of 6 images, not begun" in html and "Running now" in html and "images, running" not in html


def test_rows_of_a_comparison_belong_to_their_runs(tmp_path: Path) -> None:
    path = tmp_path / "comparison"
    make_comparison(path, ["ntrk:rho=0.01", "base", "base:best_of=1"][:2])
    text = json.loads((path / "methods.json").read_text())
    (path / "methods.json").write_text(json.dumps({**text, "best_of": [1, 2]}))
    run = json.loads((path / "base" / "run.json").read_text())
    run["settings"]["rounds"] = 2
    (path / "base" / "run.json").write_text(json.dumps(run))
    (section,) = read_page(path).sections
    assert [line[0] for line in section.results.lines] == [
        "ntrk:rho=0.01",
        "ntrk:rho=0.01, best of 2",
        "base",
        "base, best of 2",
    ]
    assert list(section.of_line) == [0, 0, 1, 1]
    assert section.runs[1].name == "base" and section.runs[1].settings.count == 12


def test_the_best_image_may_not_be_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "run", settings_of())  # the last image of each prompt is the best one
    monkeypatch.setattr(content, "MOST_IMAGES", 4)
    html = visible(render.render(tmp_path / "run"))
    assert html.count("<figure ") == 4 and "<b>best</b>" not in html


def test_equal_prompts_are_apart(tmp_path: Path) -> None:
    make_run(tmp_path / "run", replace(settings_of(particles=2), prompts=("a 7", "a 7", " a  7 ", "")))
    html = visible(render.render(tmp_path / "run"))
    assert re.findall(r"<h4>(.*?)</h4>", html)[-4:] == ["a 7", "a 7", " a  7 ", ""]
    assert re.findall(r"(\d{4}) <b>best</b>", html) == ["0001", "0003", "0005", "0007"]
    # texts of options lose spaces, so their values are numbers
    assert re.findall(r'<option value="(\d)">(.*?)</option>', html) == [
        ("0", "a 7"),
        ("1", " a  7 "),
        ("2", ""),
    ]
    assert re.findall(r'data-prompt="(\d)"', html) == list("00001122")


def test_scores_that_are_not_known_yet(tmp_path: Path) -> None:
    make_comparison(tmp_path / "comparison", ["base", "ntrk:rho=0.01"])
    shutil.rmtree(tmp_path / "comparison" / "ntrk-rho0.01")
    make_run(tmp_path / "comparison" / "ntrk-rho0.01", settings_of(), finished=0, ended=False)
    _, line = read_page(tmp_path / "comparison").sections[0].results.lines
    assert line[2:] == ["", "", "", ""]


def test_cost_of_a_comparison(tmp_path: Path) -> None:
    path = tmp_path / "comparison"
    make_comparison(path, ["base", "base:steps=3,best_of=4"])
    file = path / "base-steps3" / "run.json"
    file.write_text(file.read_text().replace('"device": "cpu"', '"device": "cuda:1"'))
    header, (first, second) = read_page(path).sections[0].costs
    assert header[-1] == "Memory planned for all methods"
    assert first[0].startswith("base:") and "best of" not in second[0] and second[2] == "3"
    assert (first[-2], second[-2]) == ("not measured: no GPU", "not known yet")
    assert read_page(path / "base-steps3").sections[0].costs.header[-1] == "Memory planned for all methods"


def test_an_experiment_has_its_tables(tmp_path: Path) -> None:
    make_experiment(tmp_path / "exp")
    html = visible(render.render(tmp_path / "exp"))
    assert "Two tables" in html and "A paper, Table 1" in html and 'href="report.html"' in html
    assert 'href="symmetry/index.html"' in html and 'href="ink/base/index.html"' in html
    assert "Plain: base" in html and html.count("<figure ") == 24
    assert html.count('id="image-1-0-0"') == 1


def test_an_address_is_quoted(tmp_path: Path) -> None:
    make_comparison(tmp_path / "c")
    (tmp_path / "c").rename(tmp_path / "100% #1?")
    assert 'href="images/0000.png"' in render.render(tmp_path / "100% #1?" / "base")
    path = tmp_path / "100% #1?"
    (path / "base").rename(path / "odd #")
    section = render._SectionOfPage("s", 0, read_page(path / "odd #").sections[0], [[]], path, None)
    assert section.address(path / "odd #") == "odd%20%23/"


@pytest.mark.parametrize("name", ["a#1", "100%", "seed:1", "javascript:alert(1)", "a?b"])
def test_an_address_of_the_list_is_quoted(tmp_path: Path, name: str) -> None:
    make_run(tmp_path / name, settings_of(particles=1), finished=0)
    (entry,) = entries(tmp_path)
    address = urlsplit(entry.address)
    assert (address.scheme, address.query, address.fragment) == ("", "", "")
    assert unquote(address.path) == f"{name}/index.html" and entry.name == name


def test_curves_have_the_steps_that_have_a_value(tmp_path: Path) -> None:
    from noisetilt_kernels.pages import charts

    folder = make_run(tmp_path / "run", settings_of())
    lines = [json.loads(line) for line in (folder.path / "records.jsonl").read_text().splitlines()]
    for line in lines:
        if line["step"] % 2:
            line["cosine"] = None
    (folder.path / "records.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (section,) = read_page(folder.path).sections
    points = [charts.Point("x", 0, picture) for picture in section.runs[0].pictures]
    source = charts._source(section, points, ["digit-judge"])
    assert source.data["cosine steps"][0].tolist() == [0, 2, 4]
    assert len(source.data["reward values"][0]) == STEPS
    assert source.data["score"] == [f"reward {0.1 + 0.05 * n:.4g}" for n in range(6)]
    assert source.data["judge digit-judge"].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    without = replace(section, runs=[replace(section.runs[0], settings=replace(settings_of(), held_out=()))])
    titles = [title for title, *_ in charts._plan("s", without, points)]
    assert titles == ["Reward over the steps", "Gradient norm over the steps", "Cosine over the steps"]


def test_seventy_methods_look_different() -> None:
    from noisetilt_kernels.pages.charts import style_of

    assert len({style_of(place) for place in range(70)}) == 70


def test_a_missing_package_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(tmp_path / "run", settings_of())
    monkeypatch.setitem(sys.modules, "bokeh", None)
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "bokeh" else object())
    render._say_missing.cache_clear()
    write_page(tmp_path / "run")
    write_page(tmp_path / "run")
    assert [record.getMessage() for record in caplog.records] == [
        'index.html is not written, because it needs bokeh: pip install "noisetilt-kernels[page]"'
    ]
    assert not (tmp_path / "run" / PAGE).exists()


def test_a_page_that_fails_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_run(tmp_path / "run", settings_of())
    with caplog.at_level(logging.WARNING):
        write_page(folder.path)
        before = (folder.path / PAGE).read_bytes()
        (folder.path / "results.jsonl").write_text("{}\n")
        write_page(folder.path)
    (record,) = caplog.records
    assert "was not written: RunFolderError" in record.getMessage()
    assert (folder.path / PAGE).read_bytes() == before
    assert not list(folder.path.glob(".*.tmp"))


def test_reading_does_not_lock_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run", settings_of(), finished=2, ended=False)
    (folder.path / ".lock").write_text(json.dumps({"host": "another", "process": 1}))
    monkeypatch.setattr("fcntl.flock", lambda *_: pytest.fail("the page locks the folder"))
    assert read_page(folder.path).running
    (folder.path / ".lock").write_text("")
    assert not read_page(folder.path).running


def test_videos_have_strips_and_their_files(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", settings_of(), finished=2, ended=False)
    lines = (folder.path / "results.jsonl").read_text().replace('"video": false', '"video": true')
    (folder.path / "results.jsonl").write_text(lines)
    Image.new("RGB", (6 * 320, 180)).save(folder.path / "images" / "0000.png")
    html = visible(render.render(folder.path))
    assert 'href="videos/0000.mp4"' in html and html.count("data-video ") == 2 and "Video 0 of" in html
    (data,) = re.findall(r"data:image/jpeg;base64,([^\"]+)", html)
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (640, 60)


def test_a_picture_is_made_again_when_its_file_changes(tmp_path: Path) -> None:
    settings = settings_of()
    folder = make_run(tmp_path / "run", settings)
    before = visible(render.render(folder.path))
    add_particle(folder, settings, 0, side=16)
    after = visible(render.render(folder.path))
    first, *others = re.findall(r"data:image/png[^\"]+", before)
    assert first not in after and all(one in after for one in others)
