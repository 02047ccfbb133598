"""The page in a real browser: plots are drawn, and it fits a phone, in light and in dark."""

import html
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from pipeline import summary
from pipeline.comparison import build
from pipeline.comparison import pages as side_by_side
from pipeline.stages import report as pages
from tests.small_run import ARM, HASWELL, check, rescued, skipped, studied, studied_run, usual_run

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--virtual-time-budget=4000"),
)
HOSTILE = ('<b>&"x"</b>', "%{y} it's", "[red]a|*_")
PROBE = """<p id="seen"></p><script>
window.addEventListener("load", function () {
  var root = document.querySelector("iframe").contentDocument.documentElement;
  document.getElementById("seen").textContent = "width " + root.clientWidth + " of "
    + root.scrollWidth + ", marks " + root.querySelectorAll("#latency .point").length;
});
</script>"""


SORT = """<p id="seen"></p><script>
window.addEventListener("load", function () {
  var page = document.querySelector("iframe").contentDocument, told = [];
  var heads = Array.from(page.querySelectorAll(".sortable thead th"));
  function look() {
    told.push(heads.map(function (head) {
      return head.getAttribute("aria-sort") || "-";
    }).join(" "));
    told.push(Array.from(page.querySelectorAll(".sortable tbody tr")).map(function (row) {
      return row.cells[0].firstChild.textContent.trim();
    }).join(", "));
  }
  look();
  ORDER.forEach(function (column) { heads[column].querySelector("button").click(); look(); });
  document.getElementById("seen").textContent = told.join("; ");
});
</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("run")
    tried = [
        check(cpu, 0.9, scheme=scheme) for scheme in ("u8s8", "u8u8") for cpu in (ARM, HASWELL)
    ]
    run = studied_run(
        *(home / "records", check(HASWELL, 0.9), *skipped("arm64")),
        quantized=studied(53, rescue=rescued(), checks=tuple(tried)),
    )
    pages.write(run.report(), home)
    rival = usual_run(home / "rival", seed=1).report(run="rival")
    found = build.compare([run.report(), rival, rival.model_copy(update={"run": "third"})])
    side_by_side.write(found, None, None, home / "comparison.html")
    pages.write(usual_run(home / "hostile-records", labels=HOSTILE).report(), home / "hostile")
    return home


@pytest.fixture
def browse(folder, tmp_path):
    """Open `name` of the run's folder in a fresh profile; return what Chromium prints."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no Chromium here: none of {', '.join(NAMES)} is on the path")

    def go(name, *more):
        command = [program, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *more]
        url = (folder / name).as_uri()
        done = subprocess.run([*command, url], capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return go


def framed(folder, name, probe, of="report.html"):
    """A page around another (`of`) that runs `probe` on it."""
    page = html.escape((folder / of).read_text(encoding="utf-8"))
    frame = f'<iframe srcdoc="{page}" style="width:390px;height:800px;border:0"></iframe>'
    (folder / name).write_text(f"<!doctype html>{frame}{probe}", encoding="utf-8")
    return name


def test_text_and_plots_are_there(browse):
    page = browse("report.html", "--dump-dom")
    assert "Distillation gained 2.50" in page
    for name in ("latency", "size", "curves", "layers"):
        drawn = page.split(f'id="{name}"')[1].split("<figcaption")[0]
        assert 'class="main-svg"' in drawn
    assert page.split('id="latency"')[1].split('id="size"')[0].count('class="errorbar"') == 5
    bars = page.split('id="layers"')[1].split("<figcaption")[0]
    assert bars.count('<g class="point">') == 20


def test_a_comparison_draws_the_differences_of_each_pair(browse):
    page = browse("comparison.html", "--dump-dom")
    assert "onnx int8 of rival and of quick are the same file" in page
    for letter in "BC":
        drawn = page.split(f'id="moved-{letter}"')[1].split("<figcaption")[0]
        assert drawn.count('class="xerror"') == 5  # networks and files with an accuracy


@pytest.mark.parametrize(("name", "marks"), [("report", 5), ("comparison", 0)])
def test_a_phone_needs_no_sideways_scroll(browse, folder, name, marks):
    framed(folder, "frame.html", PROBE, of=f"{name}.html")
    seen = browse("frame.html", "--dump-dom").split('id="seen"')[1]
    assert f"width 390 of 390, marks {marks}" in seen


def test_the_table_is_sorted_by_a_click_within_its_groups(browse, folder):
    name = framed(folder, "sort.html", SORT.replace("ORDER", "[5, 5, 5, 0, 2]"))
    told = browse(name, "--dump-dom").split('<p id="seen">')[1].split("</p>")[0].split("; ")
    marks, rows = told[::2], told[1::2]
    networks, files = "Networks in PyTorch, eager, ", "Exported files, "
    asis = "teacher, baseline, student, ", "onnx fp32, onnx int8, coreml fp16, tensorrt int8"
    none = ["-"] * len(marks[0].split())
    assert rows[0] == networks + asis[0] + files + asis[1] and marks[0].split() == none
    # by size: of networks all are equal; what has none comes last, up and down
    assert rows[1] == f"{networks}{asis[0]}{files}onnx int8, coreml fp16, onnx fp32, tensorrt int8"
    assert rows[2] == f"{networks}{asis[0]}{files}onnx fp32, coreml fp16, onnx int8, tensorrt int8"
    assert [line.split()[5] for line in marks[1:4]] == ["ascending", "descending", "-"]
    assert rows[3] == rows[0]  # the third click
    # by name; then by latency, whose mark stands alone
    assert rows[4] == (
        f"{networks}baseline, student, teacher, {files}coreml fp16, onnx fp32, onnx int8, "
        "tensorrt int8"
    )
    assert rows[5].startswith(
        f"{networks}baseline, student, teacher, {files}onnx int8, onnx fp32, "
    )
    assert marks[5].split() == [*none[:2], "ascending", *none[3:]]


def test_matrix_points_and_pictures_are_there(browse, folder):
    report = summary.read(folder)
    page = browse("report.html", "--dump-dom")
    matrix = page.split('id="confusion"')[1].split("<figcaption")[0]
    assert matrix.count('class="heatmap-label"') == 6  # three classes, each taken for the next
    drawn = page.split('id="reliability"')[1].split("<figcaption")[0]
    bins = [row.confidence.bins for row in report.rows if row.confidence]
    assert drawn.count('class="errorbar"') == len(bins[2]) + len(bins[3])
    assert page.count('<img class="small" src="data:image/png;base64,') == 12


def test_labels_with_markup_are_shown_to_the_letter(browse):
    page = browse("hostile/report.html", "--dump-dom")
    matrix = page.split('id="confusion"')[1].split("<figcaption")[0]
    ticks = re.findall(r'<g class="[xy]tick"><text[^>]*>(.*?)</text>', matrix)
    assert [html.unescape(tick) for tick in ticks] == [*HOSTILE, *HOSTILE]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_screenshots_follow_the_readers_scheme(browse, tmp_path, width, scheme):
    shot = tmp_path / "shot.png"
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    browse("report.html", f"--screenshot={shot}", f"--window-size={width},1000", *dark)
    with Image.open(shot) as image:
        assert image.size == (width, 1000)
        grey = np.asarray(image.convert("L"))
    assert (grey[0, 0] > 200) == (scheme == "light")
    assert np.ptp(grey) > 150  # there is text to read on it
