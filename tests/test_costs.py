"""`benchmarks cost --against`: a build held to what its files cost before."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import costs
from benchmarks.instructions import Instructions
from pipeline.errors import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def counted(sources):
    files = {title: sources.files[title].path for title in ("onnx fp32", "onnx int8")}
    return costs.count(files, retired=False)


def with_instructions(found, n, how="callgrind"):
    told = {title: Instructions(per_inference=n, how=how) for title in found.costs}
    return found.model_copy(update={"instructions": told})


def test_the_same_is_no_rise_and_less_is_none_either(counted):
    assert costs.risen(counted, counted) == []
    before = with_instructions(counted, 2_000_000)
    assert costs.risen(with_instructions(counted, 2_001_000), before) == []
    assert costs.risen(with_instructions(counted, 1_000_000), before) == []


def test_each_rise_is_named_with_both_counts(counted):
    rose = costs.risen(with_instructions(counted, 2_003_000), with_instructions(counted, 2_000_000))
    assert rose == [f"{title}: instructions 2,000,000 -> 2,003,000" for title in counted.costs]
    title, cost = next(iter(counted.costs.items()))
    less = cost.model_copy(update={"nodes": cost.nodes - 1, "dense_macs": cost.dense_macs // 2})
    found = costs.risen(counted, counted.model_copy(update={"costs": {title: less}}))
    assert [line.split(":")[1].split()[0] for line in found] == ["dense", "nodes"]


def test_what_cannot_be_compared_is_refused(counted):
    (first, cost), *_ = counted.costs.items()
    with pytest.raises(ConfigError, match="not counted now, as before"):
        costs.risen(counted.model_copy(update={"costs": {first: cost}}), counted)
    with pytest.raises(ConfigError, match="instructions were counted only now"):
        costs.risen(with_instructions(counted, 5), counted)
    with pytest.raises(ConfigError, match="instructions were counted only then"):
        costs.risen(counted, with_instructions(counted, 5))
    with pytest.raises(ConfigError, match="no file has the title"):
        costs.risen(counted, counted.model_copy(update={"costs": {}}))
    with pytest.raises(ConfigError, match="were counted by otherwise, now by callgrind"):
        costs.risen(with_instructions(counted, 5), with_instructions(counted, 5, "otherwise"))


def test_the_command_fails_where_a_cost_rose(sources, tmp_path):
    file, out = sources.files["onnx int8"].path, tmp_path / "cost.md"

    def run(*more):
        line = [sys.executable, "-m", "benchmarks", "cost", str(file), "--out", str(out), *more]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)

    assert run().returncode == 0
    before = tmp_path / "before.json"
    text = out.with_suffix(".json").read_text(encoding="utf-8")
    before.write_text(text, encoding="utf-8")
    assert run("--against", str(before)).returncode == 0
    body = json.loads(text)
    for cost in body["costs"].values():
        cost["parameters"] -= 100
    before.write_text(json.dumps(body), encoding="utf-8")
    done = run("--against", str(before))
    assert done.returncode == 2 and "parameters" in done.stderr and "Traceback" not in done.stderr
    own = out.with_suffix(".json")
    own.write_text(json.dumps(body), encoding="utf-8")
    for _ in range(2):  # what is held against itself is not written over
        assert run("--against", str(own)).returncode == 2
    done = run("--against", str(file))
    assert done.returncode == 2 and "no result of `cost`" in done.stderr
