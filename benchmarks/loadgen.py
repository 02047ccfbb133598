"""A second, independent clock: MLPerf LoadGen's SingleStream scenario, in a fresh process.

LoadGen (MLCommons) sends one query after the other and times them itself; its p90 stands beside
ours. Run as a module it is that process. Source: MLPerf Inference rules, section "Scenarios".
"""

import re
import sys
import tempfile
from pathlib import Path

import numpy as np

import runtime
from benchmarks.latency import Task, in_fresh_process, passing_on
from benchmarks.profiles import Profile
from benchmarks.targets import Target
from pipeline.errors import ConfigError, PipelineError, require

QUERIES = 1024
"""As many as MLPerf Mobile asks for."""
LINE = re.compile(r"^90\.?0* percentile latency \(ns\)\s*:\s*(\d+)", re.MULTILINE)
"""In LoadGen's summary."""


def check(profile: Profile) -> None:
    """Raise `NotInstalledError` without LoadGen, `ConfigError` where `profile` is not for it."""
    if profile.batch > 1 or profile.processes > 1:
        raise ConfigError(
            "LoadGen's SingleStream times one image at a time in one process, and this profile "
            "does not",
            remedy="Choose another profile, or leave out --loadgen.",
        )
    require("mlperf_loadgen", "loadgen")


def p90_ms(target: Target, profile: Profile) -> float:
    """LoadGen's 90th percentile of single inferences of the `target`, in milliseconds.

    Raises `PipelineError` where it does not come to an end, or writes no summary.
    """
    task = Task(
        runtime=target.runtime,
        path=str(target.path.resolve()),
        profile=profile,
        shape=tuple(target.images.shape),
    )
    doing = f"timing {target.path} with LoadGen"
    told = in_fresh_process(
        "benchmarks.loadgen",
        [task.model_dump_json()],
        target.images,
        doing,
        memory_limit_mb=profile.memory_limit_mb,
    ).decode()
    found = LINE.search(told.replace("\\n", "\n"))
    if found is None:
        raise PipelineError(f"{doing} gave no 90th percentile: {told[-300:]}")
    return int(found[1]) / 1e6


def main() -> None:
    """The fresh process: prints LoadGen's summary in one line."""
    with passing_on():
        print(summary(Task.model_validate_json(sys.argv[1])).replace("\n", "\\n"))


def summary(task: Task) -> str:
    """What LoadGen writes of the file that the `task` names, on the images from standard input."""
    import mlperf_loadgen as loadgen

    from benchmarks import worker

    profile = task.profile
    worker.settle(profile)
    pixels = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(task.shape)
    images = [np.ascontiguousarray(pixels[i : i + 1]) for i in range(len(pixels))]
    module = runtime.load(task.runtime)
    module.warm_import()
    if profile.memory_limit_mb:
        worker.limit_memory(profile.memory_limit_mb)
    session = worker.open_session(module, task)
    images = worker.prepared(session, images)
    session.run(images[0])
    worker.warm_up(session, images, profile)

    def answer(queries: list[loadgen.QuerySample]) -> None:
        for query in queries:
            session.run(images[query.index])
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(query.id, 0, 0)])

    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.SingleStream
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_query_count = max(QUERIES, profile.min_samples)
    settings.min_duration_ms = int(1000 * profile.min_seconds)
    settings.performance_sample_count_override = len(images)
    system = loadgen.ConstructSUT(answer, lambda: None)
    library = loadgen.ConstructQSL(len(images), len(images), lambda _: None, lambda _: None)
    with tempfile.TemporaryDirectory() as folder:
        output = loadgen.LogOutputSettings()
        output.outdir, output.copy_summary_to_stdout = folder, False
        logs = loadgen.LogSettings()
        logs.log_output, logs.enable_trace = output, False
        loadgen.StartTestWithLogSettings(system, library, settings, logs)
        return Path(folder, "mlperf_log_summary.txt").read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
