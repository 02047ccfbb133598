"""The phone's page and its server: what is served, what is believed, and a real browser on it."""

import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra phone")
pytest.importorskip("cryptography", reason="needs the extra phone")

from filelock import FileLock

from benchmarks.phone import job, server, terminal
from benchmarks.phone.visits import MOST_PHONES, Visits
from pipeline import phones, summary
from pipeline.errors import ConfigError, ExportError, NotInstalledError, StoreError
from pipeline.phones import Phone
from pipeline.store import file_sha256
from tests.pictures import make_set
from tests.test_report_browser import NAMES

ROOT = Path(__file__).parents[1]
SETTINGS = """
name = "small"
device = "cpu"
threads = 1

[data]
source = "folder"
folder = {folder}

[teach]
arch = "resnet8_cifar"
recipe = {{ epochs = 3, batch_size = 16, learning_rate = 0.05 }}

[student]
arch = "mobilenet_v2"
width = 0.25
stem_stride = 2
recipe = {{ epochs = 3, batch_size = 16, learning_rate = 0.01 }}

[quantize]
calibration = "minmax"
fine_tune = {{ batch_size = 16 }}
sensitivity_images = 0
cpu_images = 0

[export]
formats = ["onnx"]

[measure]
profile = "smoke"
"""
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--ignore-certificate-errors",
)
HELLO = {"device": "Test 1", "system": "Test OS", "browser": "none", "facts": ["cores: 2"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run's folder, and its store."""
    home = tmp_path_factory.mktemp("finished")
    make_set(home / "set", train=120, test=20)
    settings = SETTINGS.format(folder=json.dumps(str(home / "set")))
    (home / "small.toml").write_text(settings, encoding="utf-8")
    line = [sys.executable, "-m", "pipeline", "run", str(home / "small.toml")]
    done = subprocess.run(
        [*line, "--runs", str(home / "runs")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return home / "runs" / "small", home / "runs" / ".store"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run's folder that a test may spoil."""
    return Path(shutil.copytree(finished[0], tmp_path / "small"))


@pytest.fixture(scope="module")
def web():
    """Skips where onnxruntime-web is neither here nor to be had."""
    try:
        server.check()
    except NotInstalledError as error:
        pytest.skip(error.message)


class Serving:
    """A server in a thread of this process, and requests to it exactly as they are written."""

    def __init__(self, run, store, **wanted):
        self.job = job.prepare(run, store, 0.3, 0.3)
        self.said, self.url, self.fingerprint = [], "", ""
        gone_s = wanted.pop("gone_s", 60.0)
        keep = lambda phone: terminal.keep(run, phone)  # noqa: E731
        self.visits = Visits(self.job, self.said.append, keep, gone_s=gone_s)
        ready = threading.Event()

        def opened(url, fingerprint):
            self.url, self.fingerprint = url, fingerprint
            ready.set()

        options = {"phones": 1, "wait_s": 60.0, "nobody": lambda: self.said.append("nobody")}
        self.thread = threading.Thread(
            target=server.serve,
            args=(self.job, self.visits, server.listen("127.0.0.1", 0), opened),
            kwargs=options | wanted,
        )
        self.thread.start()
        assert ready.wait(20)
        found = re.fullmatch(r"https://127.0.0.1:(\d+)/([^/]+)/", self.url)
        assert found
        self.port, self.token = int(found[1]), found[2]
        self._wait_until_it_answers()

    def _wait_until_it_answers(self):
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError("the server does not listen")

    def ask(self, path, method="GET", body=None, headers=None):
        """Status, headers and body; `path` goes out as it is, dots and all."""
        context = ssl._create_unverified_context()
        line = http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=30)
        try:
            line.putrequest(method, path, skip_accept_encoding=True)
            content = b"" if body is None else body
            wanted = {"Content-Length": str(len(content))} if headers is None else headers
            for name, value in wanted.items():
                line.putheader(name, value)
            line.endheaders()
            line.send(content)
            answer = line.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            line.close()

    def get(self, rest):
        return self.ask(f"/{self.token}/{rest}")

    def post(self, name, facts):
        body = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
        status, _, told = self.ask(f"/{self.token}/{name}", "POST", body)
        return status, json.loads(told)

    def hello(self, phone="0" * 16, ways=1):
        return self.post("hello", {"phone": phone, "ways": ways, **HELLO})

    def end(self):
        for phone in list(self.visits._all):
            self.post("goodbye", {"phone": phone})
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture
def serve(run, finished, web):
    """Starts servers; they are ended with the test."""
    made = []

    def start(**wanted):
        made.append(Serving(run, finished[1], **wanted))
        return made[-1]

    yield start
    for each in made:
        if each.thread.is_alive():
            each.hello("f" * 16)
            each.end()


def figures(serving, file=0, **changes):
    """What a page posts of one file: true answers of this host, so that they are right."""
    import onnxruntime

    given = serving.job.files[file]
    session = onnxruntime.InferenceSession(given.content, providers=["CPUExecutionProvider"])

    def answers(images):
        return np.array([np.asarray(session.run(None, {"image": x[None]})[0])[0] for x in images])

    facts = {
        "phone": "0" * 16,
        "file": file,
        "how": "wasm, 1 thread",
        "kind": "wasm",
        "sha256": given.row.sha256,
        "error": None,
        "start_ms": 50.0,
        "load_ms": 20.0,
        "first_ms": 3.0,
        "samples_ms": [1.0, 2.0] * 100,
        "overhead_ms": [0.01] * 5,
        "clock_ms": 0.005,
        "curve_ms": [1.0] * 3 + [2.0] * 3,
        "curve_s": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        "golden": answers(serving.job.golden).tolist(),
        "named": answers(serving.job.sample).argmax(1).tolist(),
        "hidden": False,
    }
    return facts | changes


# ---- what is served ----


def test_the_page_is_isolated_and_the_files_are_those_that_were_exported(serve):
    serving = serve()
    status, headers, page = serving.get("")
    assert status == 200 and b"phone.js" in page
    lowered = {name.lower(): value for name, value in headers.items()}
    assert lowered["cross-origin-opener-policy"] == "same-origin"
    assert lowered["cross-origin-embedder-policy"] == "require-corp"
    assert "default-src 'none'" in lowered["content-security-policy"]
    told = json.loads(serving.get("job.json")[2])
    assert [file["title"] for file in told["files"]] == ["onnx fp32", "onnx fp16", "onnx int8"]
    for number, file in enumerate(told["files"]):
        content = serving.get(f"files/{number}.onnx")[2]
        assert content == serving.job.files[number].content
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
    assert len(serving.get("golden.bin")[2]) == told["golden"] * np.prod(told["input"])
    assert len(serving.get("sample.bin")[2]) == told["sample"] * np.prod(told["input"]) > 0
    assert serving.get("ort/ort-wasm-simd-threaded.wasm")[2][:4] == b"\0asm"


def test_its_certificate_names_the_address_and_is_its_own_each_time(serve):
    first, second = serve(), serve()
    assert first.fingerprint != second.fingerprint
    found = ssl.get_server_certificate(("127.0.0.1", first.port))
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    own = x509.load_pem_x509_certificate(found.encode())
    assert own.fingerprint(hashes.SHA256()).hex(":").upper() == first.fingerprint
    names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("method", "rest"),
    [
        *(("GET", name) for name in ("", "job.json", "files/0.onnx", "ort/ort.wasm.min.mjs")),
        *(("POST", name) for name in ("hello", "progress", "figures", "goodbye")),
    ],
)
def test_without_the_token_nothing_is_there(serve, rest, method):
    serving = serve()
    assert serving.ask(f"/{serving.token}/{rest}", method, b"{}")[0] != 404
    for token in ("x" * len(serving.token), "", serving.token[:-1], "%C3%A9"):
        assert serving.ask(f"/{token}/{rest}", method, b"{}")[0] == 404, token
    assert serving.ask("/", method, b"{}")[0] == 404


@pytest.mark.parametrize(
    "rest",
    [
        *("../../etc/passwd", "..%2f..%2fetc%2fpasswd", "files/../../report.json"),
        *("files/0.onnx/..", "ort/../page/phone.js", "ort/%2e%2e/package.json", "//etc/passwd"),
        *(
            "files/3.onnx",
            "files/-1.onnx",
            "files/0",
            "ort/",
            "ort/ort.node.min.mjs",
            "report.json",
        ),
        *("golden/00.png", "..\\..\\report.json", "style.css%00", "%00"),
    ],
)
def test_nothing_outside_of_the_run_is_served(serve, rest):
    serving = serve()
    status, _, body = serving.get(rest)
    assert status == 404 and json.loads(body) == {"error": "not found"}


# ---- what is believed ----


def test_figures_end_up_in_the_report(serve, run):
    serving = serve()
    assert serving.hello()[0] == 200
    status, told = serving.post("figures", figures(serving))
    assert status == 200 and told["golden"] == [len(serving.job.golden)] * 2
    assert told["p50_ms"] == pytest.approx(1.5)
    assert serving.post("goodbye", {"phone": "0" * 16})[0] == 200
    serving.thread.join(20)
    (phone,) = summary.read(run).phones
    (file,) = phone.files
    assert (phone.device, phone.via) == ("Test 1", "browser")
    assert phone.left == "only 1 of 3 measurements arrived"
    assert (file.title, file.p90_ms, file.n, file.overhead_ms) == ("onnx fp32", 2.0, 200, 0.01)
    assert file.top1 == file.here_top1 and file.images == len(serving.job.sample)
    assert file.rate_at_end == 2.0 and file.golden_fault is None
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Measured on Test 1, Test OS, none" in page and "up to 2.00 times" in page
    assert "Measured on Test 1" in (run / "report.md").read_text(encoding="utf-8")


def test_a_phone_that_answers_otherwise_is_told_of(serve, run):
    serving = serve()
    serving.hello()
    posted = figures(serving)
    posted["golden"][3] = [1 - x for x in posted["golden"][3]]
    posted["golden"][5][0] = None
    status, told = serving.post("figures", posted)
    n = len(serving.job.golden)
    assert status == 200 and told["golden"] == [n - 2, n] and "03.png" in told["golden_fault"]
    serving.end()
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "did not answer the golden images as here" in page


def spoil(name, value):
    return lambda posted: posted | {name: value}


SPOILED = {
    "another file's bytes": spoil("sha256", "0" * 64),
    "no such file": spoil("file", 7),
    "no samples, no reason": spoil("samples_ms", []),
    "a negative duration": spoil("samples_ms", [1.0, -1.0]),
    "too long a text": spoil("how", "x" * 201),
    "a line break": spoil("how", "a\nb"),
    "a terminal's escape": spoil("how", "a\x9b31mb"),
    "a turned direction": spoil("how", "a\u202eb"),
    "a curve without its times": spoil("curve_s", []),
    "an unknown key": spoil("more", 1),
    "a text for a number": spoil("load_ms", "20"),
    "too few golden answers": lambda posted: posted | {"golden": posted["golden"][:-1]},
    "a class that is none": lambda posted: posted | {"named": [99] * len(posted["named"])},
    "too few classes": lambda posted: posted | {"named": posted["named"][:-1]},
}


@pytest.mark.parametrize("change", SPOILED.values(), ids=SPOILED.keys())
def test_what_does_not_fit_is_refused_and_loses_nothing(serve, run, change):
    serving = serve()
    serving.hello()
    good = figures(serving)
    assert serving.post("figures", good)[0] == 200
    status, told = serving.post("figures", change(figures(serving, how="wasm, 2 threads")))
    assert status == 422 and told["error"]
    serving.end()
    ((file,),) = [phone.files for phone in summary.read(run).phones]
    assert file.how == "wasm, 1 thread"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"phone": NaN}', b"[" * 100_000]
)
def test_what_is_no_json_is_refused(serve, body):
    serving = serve()
    for name in ("hello", "progress", "figures", "goodbye"):
        assert serving.post(name, body)[0] == 422
    assert serving.get("")[0] == 200


def test_numbers_that_are_none_are_refused(serve):
    serving = serve()
    serving.hello()
    text = json.dumps(figures(serving)).replace("1.0, 2.0", "NaN, 1e999", 1)
    assert serving.post("figures", text.encode())[0] == 422


def test_too_much_is_refused_with_and_without_a_length(serve):
    serving = serve()
    big = b" " * (server.MOST_BYTES + 1)
    assert serving.post("figures", big)[0] == 413
    chunk = b"%x\r\n" % len(big) + big + b"\r\n0\r\n\r\n"
    path, headers = f"/{serving.token}/figures", {"Transfer-Encoding": "chunked"}
    assert serving.ask(path, "POST", chunk, headers)[0] == 413
    assert serving.get("")[0] == 200


def test_unknown_phones_and_too_many_are_refused(serve):
    serving = serve()
    assert serving.post("figures", figures(serving))[0] == 409
    assert serving.post("progress", {"phone": "1" * 16, "doing": "", "share": 0.0})[0] == 409
    for number in range(MOST_PHONES):
        assert serving.hello(f"{number:016x}")[0] == 200
    assert serving.hello("f" * 16)[0] == 409
    assert serving.hello(f"{0:016x}")[0] == 200  # known already


def test_no_more_figures_are_kept_than_there_are_measurements(serve):
    serving = serve()
    serving.hello(ways=1)
    posted = figures(serving)
    found = [serving.post("figures", posted | {"how": f"way {n}"})[0] for n in range(5)]
    assert found == [200, 200, 200, 422, 422]


# ---- phones that come and go ----


def test_a_phone_that_goes_away_leaves_what_it_measured(serve, run):
    serving = serve(gone_s=4.0)
    serving.hello(ways=2)
    serving.post("figures", figures(serving))
    serving.thread.join(20)  # by itself
    assert not serving.thread.is_alive()
    (phone,) = summary.read(run).phones
    assert phone.left == "it went away after 1 of 6 measurements" and len(phone.files) == 1
    assert any("went away, 1 of 6 measurements are in the report" in x for x in serving.said)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "It went away after 1 of 6 measurements." in page


def test_two_phones_at_once_are_kept_apart(serve, run):
    serving = serve(phones=2)
    for phone in ("a" * 16, "b" * 16):
        serving.hello(phone)
    serving.post("figures", figures(serving, phone="a" * 16))
    serving.post("figures", figures(serving, phone="b" * 16, samples_ms=[4.0] * 50))
    serving.post("goodbye", {"phone": "a" * 16})
    time.sleep(1.5)
    assert serving.thread.is_alive()  # the other one is still at work
    serving.end()
    found = sorted(phone.files[0].p50_ms or 0 for phone in summary.read(run).phones)
    assert found == [1.5, 4.0]


def test_a_page_that_is_loaded_again_is_the_same_phone_and_begins_anew(serve, run):
    serving = serve()
    serving.hello()
    serving.post("figures", figures(serving, samples_ms=[9.0] * 50))
    serving.hello()
    serving.post("figures", figures(serving))
    serving.end()
    (phone,) = summary.read(run).phones
    assert [file.p50_ms for file in phone.files] == [1.5]


def test_a_whole_measurement_is_not_replaced_by_part_of_another(serve, run):
    serving = serve(phones=2, gone_s=5.0)
    serving.hello()
    for file in range(3):
        serving.post("figures", figures(serving, file))
    serving.post("goodbye", {"phone": "0" * 16})
    serving.hello()  # loaded again, while the second phone is waited for
    serving.post("figures", figures(serving, samples_ms=[9.0] * 50))
    serving.hello("b" * 16)
    serving.post("figures", figures(serving, phone="b" * 16))
    serving.thread.join(30)
    whole, part = sorted(summary.read(run).phones, key=lambda phone: -len(phone.files))
    assert whole.left is None and len(whole.files) == 3 and len(part.files) == 1
    assert serving.visits.kept == serving.visits.came == 2


def test_figures_after_goodbye_are_kept_too(serve, run):
    serving = serve(phones=2)
    serving.hello()
    serving.post("figures", figures(serving))
    serving.post("goodbye", {"phone": "0" * 16})
    time.sleep(1.5)
    serving.post("figures", figures(serving, 1))
    serving.hello("b" * 16)
    serving.end()
    assert [len(phone.files) for phone in summary.read(run).phones] == [2]


def test_a_page_that_only_says_hello_does_not_count(serve):
    serving = serve(gone_s=0.5, wait_s=4.0)
    serving.hello()
    time.sleep(2)
    assert serving.thread.is_alive()
    serving.thread.join(20)
    assert not serving.thread.is_alive() and serving.visits.kept == 0


def test_figures_that_cannot_be_kept_are_told_of_and_cost_no_other_phone(serve, run, monkeypatch):
    serving = serve(phones=2)
    keep = serving.visits._keep

    def refuse(phone):
        if phone.id.endswith("a" * 16):
            raise ValueError("a fault of this program")
        keep(phone)

    monkeypatch.setattr(serving.visits, "_keep", refuse)
    for phone in ("a" * 16, "b" * 16):
        serving.hello(phone)
        assert serving.post("figures", figures(serving, phone=phone))[0] == 200
    serving.end()
    assert serving.visits.kept == 1 and len(summary.read(run).phones) == 1
    (failure,) = serving.visits.failures
    assert "are not in the report: a fault of this program" in failure


def test_a_report_that_another_process_writes_is_waited_for_and_given_up(run, monkeypatch):
    phone = Phone(id="p", device="d", via="browser", date="2026-11-27")
    monkeypatch.setattr(terminal, "LOCK_S", 0.2)
    with FileLock(run / ".lock"), pytest.raises(StoreError, match="another process has held"):
        terminal.keep(run, phone)
    terminal.keep(run, phone)


def test_figures_that_no_page_can_be_made_with_spoil_no_later_one(run, monkeypatch):
    phone = Phone(id="p", device="d", via="browser", date="2026-11-27")
    monkeypatch.setattr(terminal.report, "write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        terminal.keep(run, phone)
    assert [path.name for path in (run / phones.FOLDER).iterdir()] == ["p.unreported"]


def test_where_nobody_comes_it_ends_and_says_so(serve):
    serving = serve(wait_s=1.5)
    serving.thread.join(20)
    assert not serving.thread.is_alive() and serving.said == ["nobody"]


def test_a_run_made_anew_keeps_figures_of_files_that_are_the_same(serve, run):
    serving = serve()
    serving.hello()
    serving.post("figures", figures(serving))
    serving.end()
    report = summary.read(run).model_copy(update={"phones": ()})
    assert len(report.with_phones(run).phones) == 1
    changed = [row.model_copy(update={"sha256": "0" * 64}) for row in report.artifacts]
    other = report.model_copy(update={"artifacts": tuple(changed)})
    assert other.with_phones(run).phones == ()
    (run / phones.FOLDER / "damaged.json").write_text("{")
    assert len(report.with_phones(run).phones) == 1


# ---- before anything is served ----


@pytest.mark.parametrize("text", ["{}", "[]", "", "{", '{"images": [], "files": []}'])
def test_a_damaged_bundle_is_told(run, finished, text):
    (run / "bundle" / "golden" / "expected.json").write_text(text)
    with pytest.raises(StoreError, match=r"expected.json cannot be used"):
        job.prepare(run, finished[1], 1, 1)


def test_golden_images_are_read_from_the_bundle_only(run, finished):
    path = run / "bundle" / "golden" / "expected.json"
    body = json.loads(path.read_text(encoding="utf-8"))
    shutil.copy(run / "bundle" / "golden" / "00.png", run / "00.png")
    body["images"][0]["file"] = "../../00.png"
    path.write_text(json.dumps(body))
    with pytest.raises(StoreError, match=r"expected.json cannot be used"):
        job.prepare(run, finished[1], 1, 1)


@pytest.mark.parametrize("content", [b"", b"torn", None])
def test_a_damaged_golden_image_is_told(run, finished, content):
    path = run / "bundle" / "golden" / "03.png"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=r"03.png cannot be used"):
        job.prepare(run, finished[1], 1, 1)


def test_an_altered_file_is_not_served(run, finished):
    path = run / "bundle" / "android" / "onnx" / "int8" / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ExportError, match="not the file that was exported"):
        job.prepare(run, finished[1], 1, 1)
    path.unlink()
    with pytest.raises(StoreError, match="is gone"):
        job.prepare(run, finished[1], 1, 1)


def test_a_run_without_onnx_files_is_refused(run, finished):
    report = summary.read(run)
    other = [row.model_copy(update={"format": "litert"}) for row in report.artifacts]
    text = report.model_copy(update={"artifacts": tuple(other)}).to_json()
    (run / summary.FILE).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="no ONNX file for phones"):
        job.prepare(run, finished[1], 1, 1)


def test_without_the_store_there_are_golden_images_only(run, tmp_path):
    found = job.prepare(run, tmp_path / "nowhere", 1, 1)
    assert len(found.sample) == 0 and "nowhere" in (found.no_sample or "")
    assert len(found.golden) == 16


def test_a_taken_port_and_a_foreign_address_are_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match=r"cannot listen .* in use") as told:
            server.listen("127.0.0.1", taken.getsockname()[1])
    assert "--port" in (told.value.remedy or "")
    with pytest.raises(ConfigError, match=r"cannot listen at 203\.0\.113\.77"):
        server.listen("203.0.113.77", 0)
    for everything in ("0.0.0.0", "::"):
        with pytest.raises(ConfigError, match="no phone can open that"):
            server.listen(everything, 0)


def test_without_npm_it_says_how_to_get_the_runtime(monkeypatch, tmp_path):
    monkeypatch.setattr(server, "DIST", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotInstalledError, match="no npm") as told:
        server.check()
    assert "npm ci" in (told.value.remedy or "")


# ---- a real browser ----


@pytest.fixture
def open_page(tmp_path, web):
    """Opens an address in fresh headless Chromiums; all are killed with the test."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no Chromium here: none of {', '.join(NAMES)} is on the path")
    opened = []

    def go(url):
        profile = tmp_path / f"profile{len(opened)}"
        line = [program, *FLAGS, f"--user-data-dir={profile}", url]
        with (tmp_path / f"chromium{len(opened)}.log").open("w") as log:
            opened.append(subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True))
        return opened[-1]

    yield go
    for each in opened:
        close(each)


def close(browser):
    """End it with all its helpers, as a phone that is switched off."""
    if browser.poll() is None:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait(20)


@pytest.mark.browser
@pytest.mark.slow
def test_from_the_command_to_the_figures_in_the_report(open_page, run, finished, tmp_path):
    line = [sys.executable, "-m", "benchmarks", "phone", str(run), "--host", "127.0.0.1"]
    line += ["--store", str(finished[1]), "--seconds", "0.3", "--sustain", "0.6", "--phones", "2"]
    with (tmp_path / "said.log").open("w+") as log:
        told = subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=log)
        try:
            url = None
            for _ in range(300):
                found = re.search(r"https://\S+", (tmp_path / "said.log").read_text())
                if found and "Ctrl-C" in (tmp_path / "said.log").read_text():
                    url = found[0]
                    break
                time.sleep(0.1)
            assert url, (tmp_path / "said.log").read_text()
            open_page(url)
            open_page(url)
            code = told.wait(240)
        finally:
            told.kill()
    said = (tmp_path / "said.log").read_text()
    assert code == 0, said
    assert (
        "█" in said
        and len(re.findall(r"(\d+) of \1 measurements are in the report", said)) == 2
        and "2 phones" in said
    )
    report = summary.read(run)
    assert len(report.phones) == 2
    for phone in report.phones:
        assert "Chromium" in phone.runtime or "Chrome" in phone.runtime
        assert phone.left is None
        assert {file.title for file in phone.files} == {"onnx fp32", "onnx fp16", "onnx int8"}
        for file in phone.files:
            assert file.skipped is None, file
            assert file.golden == (16, 16) and file.golden_fault is None
            assert file.images == 3 * 20 and file.top1 is not None
            assert abs(file.top1 - (file.here_top1 or 0)) <= 1 / file.images
            # How many samples 0.3 s hold is the host's affair; too few of them are doubted.
            assert file.n >= 1 and file.curve_ms and file.overhead_ms
            assert file.n >= 20 or file.doubts
            assert (file.load_ms or 0) > 0 and (file.p99_ms or 0) >= (file.p50_ms or 0) > 0
    if (os.cpu_count() or 1) > 1:
        assert {file.how for file in report.phones[0].files} > {"wasm, 1 thread"}
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Measured on" in page and 'id="phones"' in page and 'id="sustained"' in page
    assert all(file_sha256(run / row.path) == row.sha256 for row in report.artifacts if row.path)


@pytest.mark.browser
@pytest.mark.slow
def test_a_browser_that_is_closed_half_way(open_page, serve, run):
    serving = serve(gone_s=15.0)
    browser = open_page(serving.url)
    for _ in range(900):
        if any(visit.files for visit in serving.visits._all.values()):
            break
        time.sleep(0.1)
    close(browser)
    serving.thread.join(60)
    assert not serving.thread.is_alive()
    (phone,) = summary.read(run).phones
    assert phone.left and 1 <= len(phone.files) < 6
    assert all(file.golden == (16, 16) for file in phone.files)
