"""Converters in processes of their own: their results come back, and so do their crashes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import exporters
from exporters import Variant
from pipeline.errors import ExportError
from pipeline.workshop import Workshop

ROOT = Path(__file__).parents[1]
NAME = "tensorrt"
"""A format that asks for a process of its own, and needs nothing that is not installed."""
PLAIN = Variant("fp32", source="onnx fp32")


class Crash:
    """Ends the process that unpickles it, as a converter's native code can."""

    def __reduce__(self):
        return end_by_signal, ()


def end_by_signal():
    os.write(2, b"a word before the end\n")
    os.kill(os.getpid(), signal.SIGSEGV)


def test_what_another_process_makes_is_what_this_one_makes(sources, tmp_path):
    exporter = exporters.load(NAME)
    assert exporter.ISOLATED
    here, there = tmp_path / "here", tmp_path / "a folder with spaces"
    here.mkdir()
    there.mkdir()
    with Workshop(threads=1) as workshop:
        made = workshop.export(NAME, sources, PLAIN, exporter.Settings(), there)
    assert made == exporter.export(sources, PLAIN, exporter.Settings(), here)
    for path in here.iterdir():
        assert (there / path.name).read_bytes() == path.read_bytes()


def test_an_error_comes_back_whole(sources, tmp_path):
    bare = exporters.Sources(student=sources.student, facts=sources.facts)
    with Workshop() as workshop, pytest.raises(ExportError, match=r"TypeError: .*onnx fp32"):
        workshop.export(NAME, bare, PLAIN, exporters.load(NAME).Settings(), tmp_path)
    error = ExportError("what", "how")
    kind, words = error.__reduce__()
    assert (kind(*words).message, kind(*words).remedy) == ("what", "how")


def test_a_crash_is_an_error_with_the_log_and_the_next_file_is_made(sources, tmp_path):
    settings = exporters.load(NAME).Settings()
    with Workshop() as workshop:
        with pytest.raises(ExportError, match="a word before the end") as caught:
            workshop.export(NAME, sources, PLAIN, Crash(), tmp_path)  # pyright: ignore
        assert "crashed" in caught.value.message and "export.formats" in caught.value.remedy
        assert workshop.export(NAME, sources, PLAIN, settings, tmp_path).file == "model.onnx"


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_it_ends_with_its_parent(tmp_path):
    code = """
import os, signal
from pipeline.workshop import Workshop
with Workshop() as workshop:
    workshop._open("tensorrt")
    print(workshop._pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    program = tmp_path / "parent.py"
    program.write_text(f"if __name__ == '__main__':\n    {code.strip()!r}\n    exec({code!r})\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, str(program)]
    done = subprocess.run(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    child = int(done.stdout)
    for _ in range(100):
        if not Path(f"/proc/{child}").exists():
            return
        time.sleep(0.05)
    pytest.fail("the converter outlived its parent")
