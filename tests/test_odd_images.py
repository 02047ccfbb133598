"""Images as people really have them, through the whole command: no kind of file is lost."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pictures import picture
from tests.test_flow import SETTINGS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
CLASSES = {"Bögen & Kreise": "rings", "gestreift": "bars", "点 und Punkte": "dots"}
"""Class name -> kind of picture; sorted, as the labels are."""
PLAIN = 40
TURNED = 6
"""EXIF's "turn it by 90 degrees"."""


def save_odd(folder, grey):
    """One of each: colour modes, depths, shapes, endings and names; return how many."""
    image = Image.fromarray(grey)
    exif = Image.Exif()
    exif[0x0112] = TURNED
    see_through = image.convert("RGBA")
    see_through.putalpha(Image.fromarray(np.full_like(grey, 200)))
    image.save(folder / "grey.png")
    see_through.save(folder / "rgba.png")
    image.convert("RGB").convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("P").save(folder / "palette.gif")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "sixteen bits.png")
    image.convert("RGB").resize((16, 24)).save(folder / "turned.jpg", exif=exif)
    image.resize((1, 16)).save(folder / "one pixel wide.png")
    image.convert("RGB").save(folder / "SHOUTED.JPG")
    image.convert("RGB").save(folder / "Ünïcode – 名 前.webp")
    (folder / "notes.txt").write_text("no image")
    return len([path for path in folder.iterdir() if path.suffix != ".txt"])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The report of a run on them, its folder, and what was typed."""
    home = tmp_path_factory.mktemp("odd ones")
    rng = np.random.default_rng(0)
    for name, kind in CLASSES.items():
        (home / "set" / name).mkdir(parents=True)
        assert save_odd(home / "set" / name, picture(kind, rng, 16)) == 9
        for number in range(PLAIN):
            colour = np.stack([picture(kind, rng, 16)] * 3, axis=-1)
            Image.fromarray(colour).save(home / "set" / name / f"{number}.png")
    settings = SETTINGS.format(folder=json.dumps(str(home / "set"), ensure_ascii=False))
    (home / "odd.toml").write_text(settings, encoding="utf-8")
    words = ["run", str(home / "odd.toml"), "--runs", str(home / "runs")]
    words += ["--set", "name=odd", "--set", 'export.formats=["onnx"]', "--set", "threads=1"]
    words += ["--set", "teach.recipe.epochs=1", "--set", "student.recipe.epochs=1"]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    folder = home / "runs" / "odd"
    return json.loads((folder / "report.json").read_text(encoding="utf-8")), folder, words


def test_labels_and_counts_are_those_of_the_folders(found):
    report, *_ = found
    assert report["labels"] == list(CLASSES)
    each = PLAIN + 9
    data, contract = report["dataset"], report["input"]
    assert data["train"] + data["val"] + data["test"] == each * len(CLASSES)
    assert sum(data["class_counts"]) == data["test"] == round(0.2 * each * len(CLASSES))
    assert max(data["class_counts"]) - min(data["class_counts"]) <= 1  # stratified
    assert (contract["size"], contract["channels"]) == (16, 3)


def test_the_float_file_agrees_with_the_student(found):
    report, *_ = found
    row = next(r for r in report["artifacts"] if (r["format"], r["precision"]) == ("onnx", "fp32"))
    assert row["parity"]["n"] == row["n"] == report["dataset"]["test"]
    assert row["parity"]["top1_agreement"] == 1.0 and row["parity"]["max_abs_diff"] < 1e-3


def test_names_and_command_are_on_the_pages(found):
    report, folder, words = found
    assert shlex.split(report["command"]) == ["python", "-m", "pipeline", *words]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "点 und Punkte" in page and "Bögen &amp; Kreise" in page
