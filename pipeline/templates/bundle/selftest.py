#!/usr/bin/env python3
"""Checks this bundle on the machine it lies on: is it whole, and does every file answer as it did?

    python selftest.py [--only onnx] [--verbose]

First the SHA-256 of every file is compared with manifest.json. Then each file for which a runtime
is installed (onnxruntime; ai-edge-litert, tflite-runtime or tensorflow; executorch; coremltools on
a Mac) answers to the images in golden/, and the answers are compared with golden/expected.json.

Needs Python 3.9 or later; NumPy and Pillow for the second part. Exit code: 0 where everything that
could be run answers the same, 1 where something differs, 2 where nothing could be run.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BUNDLE = Path(__file__).resolve().parent
SCHEMA = 1
SAME, DIFFERS, NOTHING = 0, 1, 2
Session = Callable[[Any], Any]


class NotRunError(Exception):
    """A file that cannot be executed here, and why."""


# ---- is it whole? ----


def sha256(path: Path) -> str:
    """As the manifest's `hashing` says."""
    total = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                total.update(block)
        return total.hexdigest()
    names = [part.relative_to(path) for part in path.rglob("*") if part.is_file()]
    for name in sorted(names, key=lambda name: name.parts):
        total.update(f"{name.as_posix()}\0{sha256(path / name)}\n".encode())
    return total.hexdigest()


def checksums(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Path and SHA-256 of everything in the bundle."""
    for file in manifest["files"]:
        for part in (file, *file["extras"]):
            yield from ((path, part["sha256"]) for path in part["paths"])
    yield from manifest["others"].items()


def damaged(manifest: dict[str, Any]) -> dict[str, str]:
    """What is wrong, by path."""
    faults = {}
    for path, expected in checksums(manifest):
        there = BUNDLE / path
        if not there.exists():
            faults[path] = "is missing"
        elif sha256(there) != expected:
            faults[path] = "was altered or cut short: its SHA-256 is not the manifest's"
    labels, classes = manifest["labels"], manifest["output"]["classes"]
    if labels["file"] not in faults:
        lines = (BUNDLE / labels["file"]).read_bytes().count(b"\n")
        if not lines == len(labels["names"]) == classes:
            faults[labels["file"]] = f"has {lines} labels for {classes} classes"
    return faults


# ---- the runtimes: each opens a file and answers to one image [size, size, channels] ----


def shaped(image: Any, shape: Any, floats: bool, raw: bool, spec: dict[str, Any]) -> Any:
    """One image as a file's input wants it: most take uint8 [1, size, size, channels]."""
    import numpy as np

    values = image[None]
    if raw:
        values = (values / 255 - np.array(spec["mean"])) / np.array(spec["std"])
    size = [int(n) for n in list(shape)[-3:] if isinstance(n, int) or hasattr(n, "item")]
    if size and len(size) == 3 and size[0] == spec["channels"] != size[2]:
        values = values.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(values.astype(np.float32) if floats else values)


def open_onnx(path: Path, raw: bool, spec: dict[str, Any]) -> tuple[str, Session]:
    """Also reads the ORT format."""
    ort = module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0]

    def run(image: Any) -> Any:
        values = shaped(image, taken.shape, "float" in taken.type, raw, spec)
        return session.run(None, {taken.name: values})[0]

    return f"onnxruntime {ort.__version__}", run


def open_litert(path: Path, raw: bool, spec: dict[str, Any]) -> tuple[str, Session]:
    """LiteRT, or what it was called before."""
    names = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite")
    found = module(*names)
    interpreter = getattr(found, "Interpreter")(model_path=str(path))  # noqa: B009
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def run(image: Any) -> Any:
        floats = "float" in str(taken["dtype"])
        interpreter.set_tensor(taken["index"], shaped(image, taken["shape"], floats, raw, spec))
        interpreter.invoke()
        return interpreter.get_tensor(given["index"])

    return found.__name__.split(".")[0], run


def open_executorch(path: Path, raw: bool, spec: dict[str, Any]) -> tuple[str, Session]:
    """ExecuTorch; its Python package brings torch."""
    runtime, torch = module("executorch.runtime"), module("torch")
    method = runtime.Runtime.get().load_program(str(path)).load_method("forward")
    about = method.metadata.input_tensor_meta(0)

    def run(image: Any) -> Any:
        floats = about.dtype() == 6  # ExecuTorch's number for float32; uint8's is 0
        values = shaped(image, about.sizes(), floats, raw, spec)
        return method.execute([torch.from_numpy(values)])[0].numpy()

    run.program = method  # type: ignore[attr-defined]  # to live as long as what it runs
    return "executorch", run


def open_coreml(path: Path, raw: bool, spec: dict[str, Any]) -> tuple[str, Session]:
    """Core ML by coremltools, which predicts on macOS only. Answers with scores by label."""
    if sys.platform != "darwin":
        raise NotRunError("Core ML runs on macOS and iOS only")
    ct = module("coremltools")
    from PIL import Image

    model = ct.models.MLModel(str(path))
    name = model.get_spec().description.input[0].name

    def run(image: Any) -> Any:
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        answer = model.predict({name: picture})
        return next(value for value in answer.values() if isinstance(value, dict))

    return f"coremltools {ct.__version__}", run


OPENERS = {
    ".onnx": open_onnx,
    ".ort": open_onnx,
    ".tflite": open_litert,
    ".pte": open_executorch,
    ".mlpackage": open_coreml,
}


def module(*names: str) -> Any:
    """The first of these modules that can be imported."""
    reasons = []
    for name in names:
        top = name.split(".")[0]
        if importlib.util.find_spec(top) is None:
            reasons.append(f"{top} is not installed")
            continue
        try:
            return importlib.import_module(name)
        except Exception as error:  # what an installation that is not whole raises is anything
            reasons.append(f"{name} cannot be loaded: {error}")
    raise NotRunError(", ".join(reasons))


# ---- does it answer as it did? ----


def compare(
    answer: Any, expected: list[list[Any]], labels: list[str], tolerance: float
) -> tuple[float, str]:
    """How far the scores are off, and what is wrong; "" where they are the same."""
    if not isinstance(answer, dict):
        values = answer.reshape(-1).tolist()
        if len(values) != len(labels):
            return math.inf, f"{len(values)} numbers for {len(labels)} labels"
        answer = dict(zip(labels, values))  # noqa: B905  # Python 3.9 has no `strict`
    off = 0.0
    for label, score in expected:
        apart = abs(answer.get(label, math.nan) - (math.nan if score is None else score))
        off = max(off, math.inf if math.isnan(apart) else apart)
    if off > tolerance:
        return off, f"a score is off by {off:.3g}, allowed {tolerance:.3g}"
    best, named = expected[0][0], max(answer, key=lambda label: answer[label])
    close = len(expected) > 1 and expected[0][1] - expected[1][1] < tolerance
    if named != best and not close:
        return off, f"names {named!r}, not {best!r}"
    return off, ""


def judge(
    file: dict[str, Any], told: dict[str, Any], images: list[Any], manifest: dict[str, Any]
) -> tuple[str, str, list[str]]:
    """State of one file, the reason or result, and a line for each image that differs."""
    path = BUNDLE / file["paths"][0]
    if told["answers"] is None:
        raise NotRunError(f"no answers to compare with: {told['reason']}")
    if told["tolerance"] is None:
        raise NotRunError("the answers to compare with are no numbers")
    opener = OPENERS.get(path.suffix)
    if opener is None:
        raise NotRunError(f"this script knows no runtime for {path.suffix} files")
    spec, labels = manifest["input"]["spec"], manifest["labels"]["names"]
    name, session = opener(path, file["variant"] == "raw", spec)
    worst, wrong = 0.0, []
    for number, (image, expected) in enumerate(zip(images, told["answers"])):  # noqa: B905
        off, fault = compare(session(image), expected, labels, told["tolerance"])
        worst = max(worst, off)
        if fault:
            wrong.append(f"{number:02}.png: {fault}")
    if wrong:
        return "differs", f"{len(wrong)} of {len(images)} images ({name})", wrong
    allowed = f"largest difference {worst:.2g}, allowed {told['tolerance']:.2g}"
    return "ok", f"{len(images)} images, {allowed} ({name})", []


def run_all(
    manifest: dict[str, Any], faults: dict[str, str], only: str | None
) -> Iterator[tuple[str, str, str, list[str]]]:
    """Path, state, result and details of every exported file."""
    expected = json.loads((BUNDLE / "golden/expected.json").read_text(encoding="utf-8"))
    images = [pixels(BUNDLE / "golden" / image["file"]) for image in expected["images"]]
    told = {each["path"]: each for each in expected["files"]}
    for file in manifest["files"]:
        if not file["paths"] or only not in (None, file["format"]):
            continue
        path = file["paths"][0]
        if path in faults:
            yield path, "not run", f"it {faults[path]}", []
            continue
        try:
            yield (path, *judge(file, told[path], images, manifest))
        except NotRunError as reason:
            yield path, "not run", str(reason), []
        except Exception as error:  # whatever a runtime raises, this file does not work with it
            yield path, "differs", f"failed: {type(error).__name__}: {error}", []


def pixels(path: Path) -> Any:
    """An image as uint8 [size, size, channels]."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        values = np.array(image)
    return values[..., None] if values.ndim == 2 else values


def lacking() -> list[str]:
    """What the second part needs and is not there."""
    needed = {"numpy": "numpy", "PIL": "pillow"}
    return [name for top, name in needed.items() if importlib.util.find_spec(top) is None]


def read_manifest() -> dict[str, Any]:
    """The manifest. Exits with 1 where it cannot be used."""
    try:
        manifest = json.loads((BUNDLE / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"manifest.json is missing or damaged: {error}")
    if manifest.get("schema") != SCHEMA:
        sys.exit(f"manifest.json has schema {manifest.get('schema')!r}; this script knows {SCHEMA}")
    return manifest


def main() -> int:
    """Check the bundle, tell what was found, return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="FORMAT", help="run files of this format only")
    parser.add_argument("--verbose", action="store_true", help="tell of every image that differs")
    options = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):  # names of classes are in any script
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")

    manifest = read_manifest()
    known = sorted({file["format"] for file in manifest["files"]})
    if options.only not in (None, *known):
        parser.error(f"no file has the format {options.only}; there are: {', '.join(known)}")
    faults = damaged(manifest)
    for path, fault in faults.items():
        print(f"{path} {fault}")
    print(f"checksums: {len(faults) or 'none'} of {len(list(checksums(manifest)))} differ")
    if missing := lacking():
        print(f"not run: install {' and '.join(missing)} (pip install {' '.join(missing)})")
        return DIFFERS if faults else NOTHING
    try:
        rows = list(run_all(manifest, faults, options.only))
    except (OSError, ValueError, KeyError) as error:
        print(f"golden/ cannot be used: {error}")
        return DIFFERS
    width = max((len(path) for path, *_ in rows), default=0)
    for path, state, result, details in rows:
        print(f"{path:{width}}  {state:7}  {result}")
        for line in details if options.verbose else details[:3]:
            print(f"{'':{width}}           {line}")
    states = [state for _, state, *_ in rows]
    if faults or "differs" in states:
        return DIFFERS
    return SAME if "ok" in states else NOTHING


if __name__ == "__main__":
    sys.exit(main())
