"""Files on a phone: a stand-in for `adb` over a folder, and for the programs what they print.

The outputs are genuine but where it is said, from documentation that shows them; no phone
and no real adb was ever near these tests.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.phone import adb, android
from benchmarks.phone.programs import TOOLS, Tool, libraries, recognise
from pipeline.errors import (
    CannotRunHereError,
    ConfigError,
    NotInstalledError,
    UnavailableError,
)
from pipeline.store import file_sha256
from tests.signals import heed_interrupts

PERF_TEST = """\
Setting intra_op_num_threads to 1
Disabling intra-op thread spinning between runs
Session creation time cost: 0.217932 s
First inference time cost: 196 ms
Total inference time cost: 0.49481 s
Total inference requests: 5
Average inference time cost total: 98.961997 ms
Total inference run time: 0.494854 s
Number of inferences per second: 10.104
Avg CPU usage: 11 %
Peak working set size: 271122432 bytes
Avg CPU usage:11
Peak working set size:271122432
Runs:5
Min Latency: 0.0958204 s
Max Latency: 0.101519 s
P50 Latency: 0.0995086 s
P90 Latency: 0.101519 s
P95 Latency: 0.101519 s
P99 Latency: 0.101519 s
P999 Latency: 0.101519 s
"""
"""On an Android phone, version 1.2x: as shown in Arm's tutorial on SME2."""
PERF_TEST_2020 = """\
Session creation time cost:0.133189 s
Total inference time cost:600.051 s
Total inference requests:7160
Average inference time cost:83.8059 ms
Total inference run time:600.102 s
"""
"""In issue 4331 of microsoft/onnxruntime."""
PERF_TEST_MS = """\
Session creation time cost: 0.0102016 s
First inference time cost: 2 ms
Total inference requests: 100
Average inference time cost: 1.85739 ms
Peak working set size: 36696064 bytes
P50 Latency is 0.00185674sec
P99 Latency is 1.90312e-03sec
"""
"""Wordings of other versions, put together."""
BENCHMARK_MODEL = """\
INFO: Log parameter values verbosely: [0]
INFO: Graph: [/usr/share/oob-demo-assets/models/ssd_mobilenet_v2_coco.tflite]
INFO: Loaded model /usr/share/oob-demo-assets/models/ssd_mobilenet_v2_coco.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: The input model file size (MB): 67.3128
INFO: Initialized session in 5.579ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if \
exceeding 150 seconds.
INFO: count=1 curr=1357602 p5=1357602 median=1357602 p95=1357602

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if \
exceeding 150 seconds.
INFO: count=50 first=1249964 curr=1240143 min=1238588 max=1252566 avg=1.24027e+06 std=2565 \
p5=1238753 median=1239807 p95=1247415

INFO: Inference timings in us: Init: 5579, First inference: 1357602, Warmup (avg): 1.3576e+06, \
Inference (avg): 1.24027e+06
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only \
APPROXIMATE to the actual memory footprint of the model at runtime. Take the information at your \
discretion.
INFO: Memory footprint delta from the start of the tool (MB): init=6.36328 overall=109.832
"""
"""TensorFlow Lite 2.16 or later, from a board maker's documentation; the XNNPACK line is added."""
BENCHMARK_MODEL_OLD = """\
STARTING!
Initialized session in 17.187ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding \
150 seconds.
count=2 first=3512391 curr=3512300 min=3512300 max=3512391 avg=3.51235e+06 std=45

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding \
150 seconds.
count=50 curr=12(all same)

Inference timings in us: Init: 17187, First inference: 3512391, Warmup (avg): 3.51235e+06, \
Inference (avg): 12
Peak memory footprint (MB): init=4.92969 overall=138.809
"""
"""TensorFlow Lite 2.4's form, with the cases that its source has besides."""
BENCHMARK_LITERT = """\
INFO: Initialized session in 5.76ms.
INFO: count=526 first=2125 curr=969 min=910 max=2125 avg=949.861 std=68 p5=915 median=939 p95=990

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if \
exceeding 150 seconds.
INFO: count=1054 first=1015 curr=942 min=910 max=1102 avg=947.132 std=23 p5=915 median=942 p95=991

INFO: [./litert/tools/benchmark_litert_model.h:72]
========== BENCHMARK RESULTS ==========
INFO: [./litert/tools/benchmark_litert_model.h:73] Model initialization: 5.76 ms
INFO: [./litert/tools/benchmark_litert_model.h:79] Inference (avg):      0.95 ms (1054 runs)
INFO: [./litert/tools/benchmark_litert_model.h:107] Overall footprint:    7.07 MB
"""
"""The program of the same name in LiteRT's own tools, as shown in build instructions; shortened."""
ADB = """\
import json, os, shutil, subprocess, sys
from pathlib import Path
home = Path(os.environ["FAKE_PHONE"])
told = json.loads((home / "state.json").read_text())
words = sys.argv[1:]
with (home / "log").open("a") as log:
    print(*words, file=log)
if words == ["devices", "-l"]:
    print("* daemon started successfully", file=sys.stderr)
    print("List of devices attached")
    for serial, state in told["phones"].items():
        print(f"{serial:22} {state} usb:1-1 product:x model:Pixel_9 device:x transport_id:1")
    print()
    raise SystemExit
assert words[0] == "-s"
serial, verb, *rest = words[1:]
if (state := told["phones"].get(serial)) != "device":
    sys.exit(f"adb: device {state or repr(serial) + ' not found'}")
def here(path):
    return path.replace("/data/local/tmp", f"{home}/tmp").replace("/sys/", f"{home}/sys/")
if verb == "push":
    local, remote = rest
    if told.get("full"):
        print(f"{local}: 0 files pushed. 5.2 MB/s (99995728 bytes in 18.348s)")
        sys.exit(f"adb: error: failed to copy '{local}' to '{remote}': remote No space left on "
                 "device")
    content = Path(local).read_bytes()
    if content[:4] == b"\\x7fELF":  # what this machine can run of a stand-in
        content = content[content.index(b"#!"):]
    Path(here(remote)).write_bytes(content + told.get("damage", "").encode())
    print(f"{local}: 1 file pushed, 0 skipped. 136.8 MB/s (114296 bytes in 0.797s)")
else:
    assert verb == "shell"
    path = f"{home}/bin:{os.environ['PATH']}"
    env = os.environ | {"PATH": path}
    done = subprocess.run(["sh", "-c", here(" ".join(rest))], env=env, stdin=subprocess.DEVNULL)
    still = json.loads((home / "state.json").read_text())["phones"]
    sys.exit(done.returncode if serial in still else 255)
"""
GETPROP = """\
case $1 in
ro.product.model) echo Pixel 9;; ro.build.version.release) echo 15;;
ro.product.cpu.abi) echo arm64-v8a;; ro.board.platform) echo zumapro;; *) echo;;
esac
"""
BATTERY = """\
cat <<'EOF'
Current Battery Service state:
  AC powered: false
  USB powered: true
  level: 100
  voltage: 4352
  temperature: 274
  technology: Li-ion
EOF
"""


@dataclass(frozen=True)
class File:
    title: str
    path: Path


class Phone:
    """The stand-in: `state.json` is what adb says, `tmp` is /data/local/tmp."""

    def __init__(self, home: Path):
        self.home = home
        self.tell(phones={"ABC123": "device"})
        _script(home / "path" / "adb", f"#!{sys.executable}\n{ADB}")
        _script(home / "bin" / "getprop", f"#!/bin/sh\n{GETPROP}")
        _script(home / "bin" / "dumpsys", f"#!/bin/sh\n{BATTERY}")
        (home / "tmp").mkdir()
        for cpu, (most, now) in enumerate([(1700000, 1700000), (3105000, 2400000)]):
            folder = home / f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
            folder.mkdir(parents=True)
            (folder / "cpuinfo_max_freq").write_text(f"{most}\n")
            (folder / "scaling_max_freq").write_text(f"{now}\n")

    def tell(self, **state):
        (self.home / "state.json").write_text(json.dumps(state))

    def is_clean(self):
        return list((self.home / "tmp").iterdir()) == []

    def log(self):
        return (self.home / "log").read_text()


def _script(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def phone(tmp_path, monkeypatch):
    home = tmp_path / "phone"
    home.mkdir()
    made = Phone(home)
    monkeypatch.setenv("FAKE_PHONE", str(home))
    monkeypatch.setenv("PATH", f"{home / 'path'}:{os.environ['PATH']}")
    return made


@pytest.fixture
def files(tmp_path):
    """One file of each kind; what is in it matters to the real programs only."""
    made = []
    for suffix in (".onnx", ".ort", ".tflite"):
        path = tmp_path / f"some model{suffix}"
        path.write_bytes(suffix.encode() * 1000)
        made.append(File(suffix[1:], path))
    return made


def _elf(
    path,
    script="",
    *,
    kind=(2, 183),
    loader=b"/system/bin/linker64",
    tool: Tool | None = TOOLS[0],
):
    """A stand-in for a program: head and mark of the real one, then a script."""
    bits, machine = kind
    head = b"\x7fELF" + bytes([bits, 1, 1]) + bytes(9) + struct.pack("<HH", 3, machine)
    mark = tool.mark if tool else b"nothing that is known"
    body = f"#!/bin/sh\n{script}".encode()
    path.write_bytes(head + bytes(44) + loader + b"\0" + mark + b"\0" + body)
    return path


def _printing(text, after=""):
    return f"echo $$ $0 \"$@\" > $FAKE_PHONE/started\ncat <<'EOF'\n{text}EOF\n{after}\n"


def test_phones_are_described(phone):
    (found,) = adb.devices()
    assert found == adb.Device(
        serial="ABC123",
        model="Pixel 9",
        android="15",
        abi="arm64-v8a",
        soc="zumapro",
        cpu_mhz=(1700, 3105),
    )
    assert adb.choose() == adb.choose("ABC123") == found


def test_without_adb(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotInstalledError, match="not on PATH") as caught:
        adb.devices()
    assert "Platform-Tools" in caught.value.remedy


@pytest.mark.parametrize(
    ("state", "advice"),
    [
        ("unauthorized", "accept its dialog"),
        ("offline", "plug it in again"),
        ("no permissions", "udev"),
        ("recovery", "Start Android"),
    ],
)
def test_a_phone_that_cannot_be_used(phone, state, advice):
    phone.tell(phones={"ABC123": state})
    for attempt in (adb.devices, adb.choose, lambda: adb.choose("ABC123")):
        with pytest.raises(CannotRunHereError, match=f"ABC123 .* `{state}`") as caught:
            attempt()
        assert advice in caught.value.remedy


def test_which_phone(phone):
    phone.tell(phones={})
    with pytest.raises(UnavailableError, match="no phone is plugged in"):
        adb.choose()
    phone.tell(phones={"ABC123": "device", "DEF456": "device", "GHI": "offline"})
    assert [each.serial for each in adb.devices()] == ["ABC123", "DEF456"]
    with pytest.raises(ConfigError, match="2 phones") as caught:
        adb.choose()
    assert "--serial: ABC123 (Pixel 9), DEF456 (Pixel 9)" in caught.value.remedy
    assert adb.choose("DEF456").serial == "DEF456"
    with pytest.raises(ConfigError, match="no phone has the serial number XYZ"):
        adb.choose("XYZ")
    with pytest.raises(CannotRunHereError, match="GHI"):
        adb.choose("GHI")


def test_an_adb_that_fails(phone):
    _script(phone.home / "path" / "adb", "#!/bin/sh\necho cannot bind tcp:5037 >&2; exit 1\n")
    with pytest.raises(CannotRunHereError, match=r"cannot list phones:\n.*cannot bind"):
        adb.devices()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"kind": (2, 62)}, "built for x86_64; the phone runs arm64-v8a"),
        ({"kind": (1, 40)}, "built for armeabi-v7a"),
        ({"kind": (2, 21)}, "ELF machine 21"),
        ({"loader": b"/lib/ld-linux-aarch64.so.1"}, "built for Linux, not for Android"),
        ({"tool": None}, "none of the programs that are known"),
    ],
)
def test_a_program_that_cannot_work(tmp_path, made, said):
    path = _elf(tmp_path / "program", **made)
    with pytest.raises(ConfigError, match=said) as caught:
        recognise(path, "arm64-v8a")
    assert "onnxruntime_perf_test or LiteRT's benchmark_model" in caught.value.remedy


def test_what_is_no_program(tmp_path):
    for content in (b"#!/bin/sh\n", b"\x7fELF", b"MZ" * 100):
        (tmp_path / "it").write_bytes(content)
        with pytest.raises(ConfigError, match="no ELF file"):
            recognise(tmp_path / "it", "arm64-v8a")
    for nothing in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ConfigError, match=r"--binary .*(No such file|Is a directory)"):
            recognise(nothing, "arm64-v8a")


def test_programs_are_recognised(tmp_path):
    for tool in TOOLS:
        assert recognise(_elf(tmp_path / "renamed", tool=tool), "arm64-v8a") is tool
        named = _elf(tmp_path / f"android_aarch64_{tool.name}", tool=None)
        assert recognise(named, "arm64-v8a") is tool


def test_libraries_are_taken_along(tmp_path):
    binary = _elf(tmp_path / "program", "libonnxruntime.so")
    (tmp_path / "libonnxruntime.so").write_bytes(b"needs libc++_shared.so, libonnxruntime.so")
    for name in ("libc++_shared.so", "libother.so"):
        (tmp_path / name).write_bytes(b"")
    found = {each.name for each in libraries(binary)}
    assert found == {"libonnxruntime.so", "libc++_shared.so"}


def test_what_perf_test_prints():
    read = TOOLS[0].read
    new = read(PERF_TEST)
    assert new is not None and new.runtime == "ONNX Runtime"
    assert (new.load_ms, new.first_ms, new.mean_ms, new.n) == (217.932, 196, 98.961997, 5)
    assert (new.p50_ms, new.p90_ms, new.p95_ms, new.p99_ms) == (99.5086, 101.519, 101.519, 101.519)
    assert (new.peak_bytes, new.grown_bytes) == (271122432, None)
    old = read(PERF_TEST_2020)
    assert old is not None
    assert (old.load_ms, old.mean_ms, old.n) == (133.189, 83.8059, 7160)
    assert old.first_ms is old.p50_ms is old.p99_ms is old.peak_bytes is None
    other = read(PERF_TEST_MS)
    assert other is not None
    assert (other.p50_ms, other.p90_ms, other.p99_ms) == (1.85674, None, 1.90312)
    nothing = "Total inference requests: 0\nAverage inference time cost: -nan ms\n"
    assert read(nothing) is None and read("") is None


def test_what_benchmark_model_prints():
    read = TOOLS[1].read
    new = read(BENCHMARK_MODEL)
    assert new is not None and new.runtime == "LiteRT, XNNPACK"
    assert (new.load_ms, new.first_ms, new.mean_ms, new.n) == (5.579, 1357.602, 1240.27, 50)
    assert (new.p50_ms, new.p90_ms, new.p95_ms, new.p99_ms) == (1239.807, None, 1247.415, None)
    assert (new.peak_bytes, new.grown_bytes) == (None, int(109.832 * 2**20))
    old = read(BENCHMARK_MODEL_OLD)
    assert old is not None and old.runtime == "LiteRT"
    assert (old.load_ms, old.first_ms, old.mean_ms, old.n) == (17.187, 3512.391, 0.012, 50)
    assert old.p50_ms is None and old.p95_ms is None
    own = read(BENCHMARK_LITERT)
    assert own is not None
    assert (own.load_ms, own.first_ms, own.p50_ms, own.mean_ms) == (5.76, 2.125, 0.942, 0.947132)
    assert (own.n, own.grown_bytes) == (1054, int(7.07 * 2**20))
    assert read(BENCHMARK_MODEL.split("INFO: count=50")[0]) is None


def test_onnx_files_are_measured(phone, files, tmp_path):
    binary = _elf(tmp_path / "onnxruntime_perf_test", _printing(PERF_TEST))
    (tmp_path / "libonnxruntime.so").write_bytes(b"")
    device = adb.choose()
    fit, skipped = adb.fitting(files, binary, device)
    assert skipped == ["tflite: onnxruntime_perf_test takes .onnx, .ort"]
    found = adb.measure(fit, binary, device, threads=2, runs=5)
    assert [each.title for each in found] == ["onnx", "ort"]
    first = found[0]
    assert first.sha256 == file_sha256(files[0].path) != found[1].sha256
    assert (first.p50_ms, first.threads, first.n) == (99.5086, 2, 5)
    assert first.arguments == "-I -s -e cpu -m times -r 5 -x 2 -y 1 model.onnx"
    assert first.binary == f"onnxruntime_perf_test {file_sha256(binary)[:12]}"
    assert (first.battery_c, first.cpu_mhz) == ((27.4, 27.4), (1700, 2400))
    started = (phone.home / "started").read_text()
    assert started.endswith(
        "/onnxruntime_perf_test "
        + found[1].arguments.replace("model.ort", started.split()[-1])
        + "\n"
    )
    assert phone.is_clean()
    assert "libonnxruntime.so" not in phone.log()  # this program does not name it


def test_a_tflite_file_is_measured(phone, files, tmp_path):
    binary = _elf(tmp_path / "b", _printing(BENCHMARK_MODEL), tool=TOOLS[1])
    (found,) = adb.measure(files[2:], binary, adb.choose(), threads=4, runs=50)
    assert found.arguments == "--graph=model.tflite --num_threads=4 --num_runs=50"
    assert (found.runtime, found.p50_ms) == ("LiteRT, XNNPACK", 1239.807)
    assert phone.is_clean()


def test_files_for_the_other_program(phone, files, tmp_path):
    binary = _elf(tmp_path / "b", tool=TOOLS[1])
    with pytest.raises(ConfigError, match=r"benchmark_model cannot run .*\.onnx"):
        adb.measure(files, binary, adb.choose(), threads=1, runs=1)
    with pytest.raises(ConfigError, match=r"none of these files .* takes \.tflite"):
        adb.fitting(files[:2], binary, adb.choose())
    assert "push" not in phone.log()


FAILURES = {
    "crash": (
        "echo terminate called; exit 134",
        r"failed on onnx \(exit code 134\).*\n.*terminate",
    ),
    "silent": ("exit 139", r"exit code 139\); its last lines: \(nothing\)"),
    "unreadable": (
        "echo Hello; echo World",
        "printed nothing about onnx .* read:\n  Hello\n  World",
    ),
    "full": ("echo write: No space left on device; exit 1", "no space left in /data/local/tmp"),
    "unplugged": (
        """echo '{"phones": {}}' > $FAKE_PHONE/state.json; exit 1""",
        r"ABC123 does not answer any more \(unplugged\); before that, onnxruntime_perf_test failed",
    ),
    "offline": (
        """echo '{"phones": {"ABC123": "offline"}}' > $FAKE_PHONE/state.json; exit 1""",
        r"ABC123 does not answer any more \(offline\)",
    ),
}


@pytest.mark.parametrize("what", FAILURES)
def test_failures_on_the_phone(phone, files, tmp_path, capfd, what):
    script, said = FAILURES[what]
    binary = _elf(tmp_path / "b", script)
    with pytest.raises(CannotRunHereError, match=said):
        adb.measure(files[:1], binary, adb.choose(), threads=1, runs=5)
    gone = what in ("unplugged", "offline")
    assert phone.is_clean() != gone
    assert ("may still be on the phone. Remove it: adb -s" in capfd.readouterr().err) == gone


def test_a_library_that_is_missing(phone, files, tmp_path):
    error = 'CANNOT LINK EXECUTABLE "b": library "libonnxruntime.so" not found'
    binary = _elf(tmp_path / "b", f"echo '{error}'; exit 1")
    with pytest.raises(CannotRunHereError, match="CANNOT LINK") as caught:
        adb.measure(files[:1], binary, adb.choose(), threads=1, runs=5)
    assert "beside the program" in caught.value.remedy


def test_copies_that_fail(phone, files, tmp_path):
    binary = _elf(tmp_path / "b", _printing(PERF_TEST))
    device = adb.choose()
    phone.tell(phones={"ABC123": "device"}, full=True)
    with pytest.raises(CannotRunHereError, match=r"b could not be copied .* no space left"):
        adb.measure(files[:1], binary, device, threads=1, runs=5)
    phone.tell(phones={"ABC123": "device"}, damage="\n#")
    with pytest.raises(CannotRunHereError, match=r"what arrived .* is not .*some model\.onnx"):
        adb.measure(files[:1], binary, device, threads=1, runs=5)
    assert phone.is_clean() and not (phone.home / "started").exists()


def test_a_phone_gone_before_the_start(phone, files, tmp_path):
    binary, device = _elf(tmp_path / "b"), adb.choose()
    phone.tell(phones={})
    with pytest.raises(CannotRunHereError, match="does not answer any more"):
        adb.measure(files[:1], binary, device, threads=1, runs=5)


def test_too_long(phone, files, tmp_path, monkeypatch):
    monkeypatch.setattr(adb, "RUN_S", 1)
    binary = _elf(tmp_path / "b", _printing("", "exec sleep 60"))
    with pytest.raises(CannotRunHereError, match="within 1 s") as caught:
        adb.measure(files[:1], binary, adb.choose(), threads=1, runs=5)
    assert "fewer runs" in caught.value.remedy
    assert phone.is_clean() and _ended(phone)


def test_no_answer(phone, monkeypatch):
    _script(phone.home / "bin" / "getprop", "#!/bin/sh\nexec sleep 5\n")
    with pytest.raises(CannotRunHereError, match=r"adb -s ABC123 shell .* within 0\.5 s"):
        android.shell("ABC123", "getprop", limit_s=0.5)


def test_ctrl_c(phone, files, tmp_path):
    binary = _elf(tmp_path / "b", _printing("", "exec sleep 60"))
    code = (
        "import sys; from pathlib import Path; from benchmarks.phone import adb; "
        "from types import SimpleNamespace as File; "
        "file = File(title='it', path=Path(sys.argv[1])); "
        "adb.measure([file], Path(sys.argv[2]), adb.choose(), 1, 5)"
    )
    command = [sys.executable, "-c", code, str(files[0].path), str(binary)]
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        command, cwd=root, preexec_fn=heed_interrupts, stderr=subprocess.PIPE, text=True
    ) as running:
        started = phone.home / "started"
        deadline = time.monotonic() + 60
        while not (started.exists() and started.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in running.communicate(timeout=60)[1]
    assert phone.is_clean() and _ended(phone)


def _ended(phone):
    """Whether the program on the phone is gone, not only the adb that waited for it."""
    pid = int((phone.home / "started").read_text().split()[0])
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False
