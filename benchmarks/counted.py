"""The process whose instructions `benchmarks.instructions` counts: one ONNX file, one thread.

It runs under callgrind, which executes it as it is and counts from the first inference on that is
to be counted. Each of these is dumped by itself, on demand of this process: callgrind obeys a
sequence of machine code that does nothing on a real CPU. The last line printed is an `Answer` as
JSON.
"""

import ctypes
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.errors import ExportError
from runtime.onnx_runtime import PROVIDER, SPINNING, quiet_import

MARK = "inference"
"""By this text a dump of one inference is told from callgrind's others."""
THREAD = 2
"""The thread that infers, as callgrind numbers threads, from 1 on."""
WARMUP = 1
"""Inferences that are not counted: in the first ONNX Runtime plans its memory, and for float32 on
224 px each takes 20 s."""
WINDOWS = 3
"""Inferences that are counted, each by itself: see `benchmarks.instructions`."""

# From valgrind.h: rdi is turned once round, which valgrind takes for a call; rax points to its
# arguments, and rdx is the answer, 0 on a real CPU.
_REQUEST = "4889f8 31d2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3"
_LEAF_7 = "53 b807000000 31c9 0fa2 89d8 5b c3"
"""CPUID's bits of wide vectors."""
_AVX2, _AVX512 = 1 << 5, 1 << 16

_ON_VALGRIND = 0x1001
_CALLGRIND = ord("C") << 24 | ord("T") << 16
_ZERO, _DUMP_AS, _START, _STOP = (_CALLGRIND + number for number in (1, 3, 4, 5))

EXTERNAL = "session.model_external_initializers_file_folder_path"
"""Where to look for weights that a file keeps beside itself."""
_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}


class Answer(BaseModel):
    """What this process has to say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vectors: str = ""
    """The widest vectors that the CPU has, as far as this process can see."""
    refused: tuple[str, str] | None = None
    """Message and remedy where the file cannot be counted."""


def main() -> None:
    """Run the file that the command line names, and have its inferences counted.

    In a thread of its own, for which the allocator sets memory apart: what a look-up by address
    takes does not depend on what Python has allocated, such as its environment, before. Started
    first, it is number `THREAD` to callgrind: importing ONNX Runtime starts one, too.
    """
    imported = Event()
    thread = Thread(target=_work, args=(Path(sys.argv[1]), imported), daemon=True)
    thread.start()
    quiet_import()
    imported.set()
    thread.join()


def _work(path: Path, imported: Event) -> None:
    imported.wait()
    machine = Machine()
    try:
        infer = inference(path)
    except ExportError as error:
        print(Answer(refused=(error.message, error.remedy)).model_dump_json())
        return
    for _ in range(WARMUP):
        infer()
    machine.request(_START)
    for _ in range(WINDOWS):
        machine.request(_ZERO)
        infer()
        machine.request(_DUMP_AS, MARK)
    machine.request(_STOP)
    print(Answer(vectors=machine.vectors()).model_dump_json())


class Machine:
    """Machine code that Python has no words for; of x86-64."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=7)  # to write, read and execute
        self._call = self._function(_REQUEST, ctypes.c_void_p)
        self._leaf_7 = self._function(_LEAF_7)
        if not self.request(_ON_VALGRIND):
            raise SystemExit("this process is not run by valgrind")

    def _function(self, code: str, *takes: Any) -> Callable[..., int]:
        at = self._page.tell()
        self._page.write(bytes.fromhex(code))
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._page, at))
        return ctypes.CFUNCTYPE(ctypes.c_uint32, *takes)(address)

    def request(self, number: int, text: str = "") -> int:
        """Ask valgrind for something."""
        word = ctypes.create_string_buffer(text.encode())
        words = (ctypes.c_uint64 * 6)(number, ctypes.addressof(word))
        return self._call(ctypes.addressof(words))

    def vectors(self) -> str:
        """Which kernels ONNX Runtime may choose."""
        bits = self._leaf_7()
        return "AVX-512" if bits & _AVX512 else "AVX2" if bits & _AVX2 else "no AVX2"


def inference(path: Path) -> Callable[[], None]:
    """What runs the file `path` once on one image of noise.

    Its input and output are bound beforehand, so that a call does next to nothing but infer.
    Raises `ExportError` for a file that ONNX Runtime cannot load or that has no fixed image size.
    """
    ort = quiet_import()
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(SPINNING, "0")
    try:
        # As bytes and from its own folder: the length of its path would shift what is allocated.
        os.chdir(path.parent)
        options.add_session_config_entry(EXTERNAL, ".")
        session = ort.InferenceSession(path.read_bytes(), options, providers=[PROVIDER])
    except Exception as error:  # ONNX Runtime has an exception class a status code, no base
        raise ExportError(
            f"ONNX Runtime cannot load {path}: {error}", remedy="Export the file again."
        ) from error
    binding = session.io_binding()
    for value in session.get_inputs():
        binding.bind_cpu_input(value.name, _noise(value, path))
    for value in session.get_outputs():
        binding.bind_output(value.name)
    return lambda: session.run_with_iobinding(binding)


def _noise(value: Any, path: Path) -> NDArray[Any]:
    """One image for the input `value`: always the same."""
    first, *others = value.shape or [1]
    shape = [first if isinstance(first, int) else 1, *others]
    if value.type not in _TYPES or not all(isinstance(length, int) for length in shape):
        raise ExportError(
            f"{path} takes `{value.name}` as {value.type} {value.shape}, and only images of a "
            "fixed size can be made up for it",
            remedy="Export the file with a fixed image size.",
        )
    pixels = np.random.default_rng(0).integers(0, 256, shape)
    return pixels.astype(_TYPES[value.type])


if __name__ == "__main__":
    main()
