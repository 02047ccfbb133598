"""A few lines of code a platform that run the files as they are, to be pasted into an app."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.bundle.manifest import BundledFile, Manifest
from pipeline.records import Platform
from pipeline.wording import interval, megabytes, percent

TEMPLATES = Path(__file__).resolve().parents[1] / "templates" / "bundle"
INPUT = "image"
"""Name of the input, as the exporters of ONNX and Core ML have it; the output's is what it is."""
ORDER = ("int8", "fp32", "fp16", "w8a16", "w6a16", "w4a16")
"""Which file of a format a snippet opens: on CPUs int8 is the quickest."""
APPLE = ("fp16", "w8a16", "w6a16", "int8", "fp32", "w4a16")
"""Its GPU and Neural Engine compute in half precision."""


class Snippet(NamedTuple):
    """One file of code, written where its platform has a file of one of the formats."""

    file: str
    platform: Platform
    formats: tuple[str, ...]
    """The first that is there is opened."""
    order: tuple[str, ...] = ORDER


SNIPPETS = (
    Snippet("OnnxRuntime.kt", "android", ("onnx", "ort")),
    Snippet("LiteRT.kt", "android", ("litert",)),
    Snippet("CoreML.swift", "ios", ("coreml",), APPLE),
    Snippet("onnxruntime-web.js", "web", ("onnx",)),
)


def texts() -> Environment:
    """The templates of what is plain text in the bundle."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def write(manifest: Manifest, bundle: Path) -> list[str]:
    """Write the snippets that fit the files; returns their paths in the bundle."""
    page = texts()
    written = []
    for snippet in SNIPPETS:
        files = _candidates(manifest, snippet)
        if not files:
            continue
        path = f"{snippet.platform}/{snippet.file}"
        text = page.get_template(f"{snippet.file}.j2").render(_facts(manifest, snippet, files))
        (bundle / path).write_text(text, encoding="utf-8", newline="\n")
        written.append(path)
    return written


def _candidates(manifest: Manifest, snippet: Snippet) -> list[BundledFile]:
    """The files that the snippet can open, the one that it does open first."""
    files = [
        file
        for file in manifest.files
        if file.format in snippet.formats
        and _path(file, snippet.platform)
        and file.variant != "raw"  # it takes other pixels
    ]
    return sorted(
        files,
        key=lambda file: (
            snippet.formats.index(file.format),
            file.variant is not None,
            snippet.order.index(file.precision),
        ),
    )


def _path(file: BundledFile, platform: str) -> str | None:
    """Its path inside the platform's folder; None where it is not for that."""
    start = f"{platform}/"
    return next((path[len(start) :] for path in file.paths if path.startswith(start)), None)


def _facts(manifest: Manifest, snippet: Snippet, files: Sequence[BundledFile]) -> dict[str, Any]:
    spec, lead = manifest.input.spec, files[0]
    path = _path(lead, snippet.platform) or ""
    return {
        "path": path,
        "name": path.rsplit("/", 1)[-1],
        "stem": path.rsplit("/", 1)[-1].split(".")[0],
        "files": [f"{_path(file, snippet.platform)} — {_worth(file)}" for file in files],
        "input": INPUT,
        "output": lead.output,
        "logits": lead.output == "logits",
        "labels": manifest.labels.file,
        "size": spec.size,
        "channels": spec.channels,
        "classes": manifest.output.classes,
        "crop": manifest.input.crop_fraction,
    }


def _worth(file: BundledFile) -> str:
    """Size and accuracy in words."""
    size = f"{megabytes(file.bytes)} MB"
    if file.top1 is None:
        return f"{size}, not run when it was made"
    return (
        f"{size}, top-1 {percent(file.top1)} % (95 % interval {interval(file.top1_ci95)}, "
        f"{file.n:,} test images)"
    )
