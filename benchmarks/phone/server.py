"""The server: one run's page under a secret address, over HTTPS, until the phones are through.

Nothing is served by a path: every address stands for one thing that was read beforehand, or for one
of the page's and onnxruntime-web's own files by exact name.
"""

import asyncio
import json
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock
from pydantic import BaseModel, ValidationError

from benchmarks.phone import certificate
from benchmarks.phone.job import Job
from benchmarks.phone.posted import Figures, Goodbye, Hello, Progress, UnfitError
from benchmarks.phone.visits import Visits
from pipeline.errors import CannotRunHereError, ConfigError, NotInstalledError, require

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HERE = Path(__file__).parent
PAGE = {
    "": ("index.html", "text/html; charset=utf-8"),
    "style.css": ("style.css", "text/css; charset=utf-8"),
    "phone.js": ("phone.js", "text/javascript; charset=utf-8"),
}
DIST = HERE / "node_modules" / "onnxruntime-web" / "dist"
RUNTIME = (
    *("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    *("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs"),
    "ort-wasm-simd-threaded.asyncify.wasm",
)
"""Of onnxruntime-web: what the page loads for the CPU, and for WebGPU."""
MOST_BYTES = 4_000_000
"""Of one post. Golden logits of 1,000 classes and all samples take a tenth."""
LOOK_S = 0.5
HEADERS = {
    # Both together make the page cross-origin isolated: without that, no threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; "
    "worker-src 'self' blob:; connect-src 'self'; style-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
FRESH = {"Cache-Control": "no-store"}
KEPT = {"Cache-Control": "private, max-age=3600"}
"""Every worker of the page asks for the runtime again; an address lives as long as its server."""
M = TypeVar("M", bound=BaseModel)


def check() -> None:
    """Whether all that the page needs is installed; fetches onnxruntime-web where it is not.

    Raises `NotInstalledError` without the extra `phone`, or without npm.
    """
    for module in ("cryptography", "segno", "starlette", "uvicorn"):
        require(module, "phone")
    if all((DIST / name).is_file() for name in RUNTIME):
        return
    by_hand = f"cd {HERE.relative_to(HERE.parents[1])} && npm ci --ignore-scripts"
    npm = shutil.which("npm")
    if npm is None:
        raise NotInstalledError(
            "onnxruntime-web is not here, and there is no npm to fetch it",
            f"Install Node.js with npm, or on a machine that has it: {by_hand}",
        )
    with FileLock(HERE / "node_modules.lock"):  # tests run side by side
        if all((DIST / name).is_file() for name in RUNTIME):
            return
        done = subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=HERE,
            capture_output=True,
            text=True,
        )
    if done.returncode or not all((DIST / name).is_file() for name in RUNTIME):
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise NotInstalledError(f"npm could not fetch onnxruntime-web: {' '.join(last)}", by_hand)


def address() -> str:
    """This machine's address in the local network, as the system would leave by; nothing is sent.

    Raises `CannotRunHereError` without a network.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation: RFC 5737
            return str(probe.getsockname()[0])
        except OSError as error:
            raise CannotRunHereError(
                "this machine has no network that a phone could be in",
                "Join one, or name an address with --host.",
            ) from error


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to `host` and `port`, 0 for any free one.

    Raises `ConfigError` for a taken port, for an address that is not this machine's, and for one
    that stands for all of them, which no phone could open.
    """
    if host in ("0.0.0.0", "::", ""):
        raise ConfigError(
            f"--host {host or 'nothing'}: no phone can open that",
            "Name the address that this machine has in the phone's network.",
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen()
    except OSError as error:
        found.close()
        raise ConfigError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}",
            "Name another --port (0 takes any free one), or this machine's address with --host.",
        ) from error
    return found


def application(job: Job, visits: Visits, token: str) -> "Starlette":
    """The page of `job` under /`token`/. Anything else is not found, whoever asks."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    served = _served(job)

    async def get(request: Request) -> Response:
        found = served.get(request.path_params["rest"]) if _may(request, token) else None
        if found is None:
            return _refuse(404, "not found")
        content, kind = found
        body = content if isinstance(content, bytes) else await asyncio.to_thread(content)
        return Response(body, media_type=kind, headers=HEADERS | KEPT)

    async def answer(request: Request, kind: type[M], use: Callable[[M], object]) -> Response:
        if not _may(request, token):
            return _refuse(404, "not found")
        body = await _body(request)
        if body is None:
            return _refuse(413, f"more than {MOST_BYTES:,} bytes")
        try:
            found = use(kind.model_validate_json(body))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            return _refuse(422, f"{place}: {first['msg']}")
        except UnfitError as error:
            return _refuse(422, str(error))
        if not found:
            return _refuse(409, "this phone is not known here, or there are too many")
        told = found.model_dump(mode="json") if isinstance(found, BaseModel) else {"ok": True}
        return JSONResponse(told, headers=HEADERS | FRESH)

    def post(kind: type[M], use: Callable[[M], object]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return await answer(request, kind, use)

        return endpoint

    routes = [
        Route("/{token}/hello", post(Hello, visits.hello), methods=["POST"]),
        Route("/{token}/progress", post(Progress, visits.progress), methods=["POST"]),
        Route("/{token}/figures", post(Figures, visits.figures), methods=["POST"]),
        Route("/{token}/goodbye", post(Goodbye, visits.goodbye), methods=["POST"]),
        Route("/{token}/{rest:path}", get, methods=["GET"]),
    ]
    return Starlette(routes=routes, exception_handlers={404: _missing, 405: _missing})


def _served(job: Job) -> dict[str, tuple[bytes | Callable[[], bytes], str]]:
    """Everything that can be asked for, by what follows the token."""
    binary = "application/octet-stream"
    found: dict[str, tuple[bytes | Callable[[], bytes], str]] = {
        "job.json": (_json(job.told()), "application/json"),
        "golden.bin": (job.golden.tobytes(), binary),
        "sample.bin": (job.sample.tobytes(), binary),
        "empty.onnx": (job.empty, binary),
    }
    found |= {name: ((HERE / "page" / file).read_bytes, k) for name, (file, k) in PAGE.items()}
    found |= {f"files/{n}.onnx": (file.content, binary) for n, file in enumerate(job.files)}
    for name in RUNTIME:
        kind = "application/wasm" if name.endswith(".wasm") else "text/javascript"
        found[f"ort/{name}"] = (DIST / name).read_bytes, kind
    return found


def _json(facts: Any) -> bytes:
    return json.dumps(facts, allow_nan=False).encode()


def _may(request: "Request", token: str) -> bool:
    given = request.path_params["token"].encode("utf-8", "replace")
    return secrets.compare_digest(given, token.encode())


def _refuse(status: int, why: str) -> "Response":
    from starlette.responses import JSONResponse

    return JSONResponse({"error": why}, status, headers=HEADERS | FRESH)


async def _missing(request: "Request", error: Exception) -> "Response":
    return _refuse(404, "not found")


async def _body(request: "Request") -> bytes | None:
    """What was posted; None as soon as it is too much, whatever its headers promise."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


def serve(
    job: Job,
    visits: Visits,
    listening: socket.socket,
    opened: Callable[[str, str], None],
    *,
    phones: int,
    wait_s: float,
    nobody: Callable[[], None],
) -> None:
    """Serve until `phones` phones have measured and all are through, or for `wait_s` seconds
    without a phone at work.

    `opened` is told the address with its token and the certificate's fingerprint; `nobody`, once,
    that a minute passed without a visitor.
    """
    import uvicorn

    host, port = listening.getsockname()[:2]
    token = secrets.token_urlsafe(16)
    with tempfile.TemporaryDirectory() as folder:
        own = certificate.make([host], Path(folder))
        server = uvicorn.Server(
            uvicorn.Config(
                application(job, visits, token),
                ssl_certfile=str(own.certificate),
                ssl_keyfile=str(own.key),
                log_config=None,
                log_level="critical",  # what a person wants to know, `Visits` says
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=2,
                lifespan="off",
            )
        )
        shown = f"[{host}]" if ":" in host else host
        opened(f"https://{shown}:{port}/{token}/", own.fingerprint)
        try:
            asyncio.run(_until_done(server, visits, listening, phones, wait_s, nobody))
        finally:
            visits.close()


async def _until_done(
    server: Any,
    visits: Visits,
    listening: socket.socket,
    phones: int,
    wait_s: float,
    nobody: Callable[[], None],
) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    since, told = time.monotonic(), False
    while not serving.done():
        await asyncio.sleep(LOOK_S)
        visits.look()
        await asyncio.to_thread(visits.settle)
        waited = time.monotonic() - since
        if visits.opened == 0 and waited > min(60, wait_s / 2) and not told:
            told = True
            nobody()
        came = visits.came >= phones
        if not visits.busy and (came or waited > wait_s):
            server.should_exit = True
            break
        if visits.busy:
            since = time.monotonic()
    await serving
