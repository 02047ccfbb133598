"""The gate: each rule with its statistical reading, and what CI reads of it."""

import os
import subprocess
import sys
from math import exp
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest

from benchmarks.instructions import Instructions
from pipeline import gate, judgements
from pipeline.comparing import latency_ratio
from pipeline.errors import ConfigError
from pipeline.gate import Rules
from pipeline.in_turn import Ratio
from pipeline.stages import report as pages
from pipeline.store import file_sha256
from pipeline.summary import LatencyRow
from tests.small_run import SmallRun

ROOT = Path(__file__).parents[1]


def run(folder, *, wrong=100, flips=0, p50=1.0, size=9_000, **latency):
    """A report with one file: so many wrong answers, so long a p50 with an interval of 2 %."""
    small = SmallRun(folder / "records")
    student = small.logits(wrong)
    small.add_model("student", wrong, 1.0)
    answers = small.logits(0, base=student, flips=flips)
    small.add_artifact("onnx", "int8", size, small.measured("onnx", answers, p50, student))
    found = small.report()
    facts = {"p50_ci95": (0.99 * p50, 1.01 * p50)} | latency
    rows = [
        row.model_copy(update={"latency": row.latency and row.latency.model_copy(update=facts)})
        for row in found.artifacts
    ]
    return found.model_copy(update={"artifacts": tuple(rows)})


def judged(tmp_path, rules, now, before=None):
    before = before or run(tmp_path / "before")
    found = gate.judge(now, tmp_path, before, tmp_path, Rules.model_validate(rules))
    return [(each.rule, each.state) for each in found], found


@pytest.mark.parametrize(
    ("flips", "state"), [(0, "passed"), (10, "passed"), (40, "failed"), (200, "failed")]
)
def test_accuracy_fails_only_where_the_loss_is_certain(tmp_path, flips, state):
    # Of 1,200 images: 10 changed answers are a loss of up to 0.8 points, which may be chance.
    states, (found,) = judged(
        tmp_path, {"accuracy": {"most": 0.5}}, run(tmp_path / "now", flips=flips)
    )
    assert states == [("accuracy", state)] and "0.5 may be lost" in found.told


@pytest.mark.parametrize(
    ("p50", "state"), [(0.5, "passed"), (1.1, "passed"), (1.11, "passed"), (1.13, "failed")]
)
def test_latency_fails_where_the_whole_interval_is_beyond(tmp_path, p50, state):
    states, (found,) = judged(tmp_path, {"latency": {"most": 1.1}}, run(tmp_path / "now", p50=p50))
    assert states == [("latency", state)] and "1.1 are allowed" in found.told


@pytest.mark.parametrize("unjudged", ["fail", "pass"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"noisy": "load average 9"}, "too noisy: load average 9"),
        ({"p50_ci95": None}, "no interval"),
        ({"host": "another"}, "different hosts"),
        ({"profile": "phone-4t"}, "different profiles"),
    ],
)
def test_what_cannot_be_judged_is_said_and_decided_by_the_rule(tmp_path, change, said, unjudged):
    rule = {"latency": {"most": 1.1, "unjudged": unjudged}}
    states, (found,) = judged(tmp_path, rule, run(tmp_path / "now", **change))
    assert states == [("latency", "not judged")] and said in found.told
    assert found.passes == (unjudged == "pass")


@pytest.fixture
def twins(float_onnx, tmp_path):
    """Two runs, measured on different hosts, with two real files of one network."""
    found = []
    for name, host in (("before", "there"), ("now", "here")):
        report = run(tmp_path / name, host=host, profile="smoke")
        model = onnx.load(float_onnx.path)
        model.doc_string = name
        onnx.save(model, tmp_path / f"{name}.onnx")
        facts = {"path": f"{name}.onnx", "sha256": file_sha256(tmp_path / f"{name}.onnx")}
        (row,) = report.artifacts
        found.append(report.model_copy(update={"artifacts": (row.model_copy(update=facts),)}))
    return found


IN_TURN = {"most": 3.0, "in_turn": True, "rounds": 5}


def test_two_files_of_one_network_timed_in_turn_are_not_certainly_apart(tmp_path, twins):
    before, now = twins
    # Compared by their reports they could not be judged: those are of different hosts.
    states, _ = judged(tmp_path, {"latency": {"most": 3.0}}, now, before)
    assert states == [("latency", "not judged")]
    _, (found,) = judged(tmp_path, {"latency": IN_TURN}, now, before)
    assert found.state != "failed"
    assert "in 5 rounds in turn" in found.told and "3 are allowed" in found.told


@pytest.mark.parametrize("unjudged", ["fail", "pass"])
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("gone", "before.onnx is gone"),
        ("altered", "before.onnx is not the file that was exported"),
        ({"sha256": None}, "has no checksum"),
        ({"format": "coreml"}, "says nothing of the format"),
        ({"latency": None}, "no profile to time them under"),
    ],
)
def test_files_that_cannot_be_timed_in_turn_are_not_judged(tmp_path, twins, harm, said, unjudged):
    before, now = twins
    if harm == "gone":
        (tmp_path / "before.onnx").unlink()
    elif harm == "altered":
        with (tmp_path / "before.onnx").open("ab") as file:
            file.write(b"x")
    else:
        (row,) = before.artifacts
        before = before.model_copy(update={"artifacts": (row.model_copy(update=harm),)})
    if "latency" in harm or "format" in harm:
        (row,) = now.artifacts
        now = now.model_copy(update={"artifacts": (row.model_copy(update=harm),)})
    rule = {"latency": IN_TURN | {"unjudged": unjudged}}
    states, (found,) = judged(tmp_path, rule, now, before)
    assert states == [("latency", "not judged")] and said in found.told
    assert found.passes == (unjudged == "pass")


def test_a_profile_that_this_machine_cannot_give_is_told(tmp_path, twins):
    before, now = twins
    (row,) = now.artifacts
    row = row.model_copy(update={"latency": row.latency.model_copy(update={"profile": "tablet"})})
    now = now.model_copy(update={"artifacts": (row,)})
    _, (found,) = judged(tmp_path, {"latency": IN_TURN}, now, before)
    assert found.state == "not judged" and "no latency profile is called `tablet`" in found.told


def test_the_same_file_is_not_timed_against_itself(tmp_path, twins):
    _, now = twins
    for most, state in ((1.0, "passed"), (0.9, "failed")):  # it is not faster than itself
        rules = {"latency": IN_TURN | {"most": most}, "instructions": {"most": most}}
        _, found = judged(tmp_path, rules, now, now)
        assert [(each.state, each.told) for each in found] == [(state, gate.SAME)] * 2


@pytest.mark.parametrize(
    ("harm", "said"), [("gone", "is gone"), ("altered", "is not the file that was exported")]
)
def test_a_file_that_is_not_what_it_was_does_not_pass_for_the_same(tmp_path, twins, harm, said):
    before, now = twins
    path = tmp_path / "now.onnx"
    rules = {"latency": IN_TURN, "instructions": {"most": 1.0}}
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b"x")
    for other in (before, now):
        _, found = judged(tmp_path, rules, now, other)
        assert [each.state for each in found] == ["not judged"] * 2
        assert all("now.onnx " + said in each.told for each in found)


def test_where_a_run_kept_no_answers_the_wider_interval_is_said(tmp_path):
    before, now = run(tmp_path / "before"), run(tmp_path / "now", flips=40)
    (row,) = now.artifacts
    bare = now.model_copy(update={"artifacts": (row.model_copy(update={"correct": None}),)})
    for report, unpaired in ((now, False), (bare, True)):
        _, (found,) = judged(tmp_path, {"accuracy": {"most": 0.5}}, report, before)
        assert ("unpaired" in found.told) == unpaired


@pytest.mark.parametrize(
    ("value", "ci95", "state"),
    [
        (1.3, (1.12, 1.5), "failed"),
        (1.12, (1.08, 1.16), "passed"),  # perhaps worse, not certainly
        (1.0, (0.5, 1.05), "passed"),  # however wide, it is below
        (1.3, (0.9, 1.9), "not judged"),  # too wide to say anything of 1.1
    ],
)
def test_the_interval_of_the_rounds_decides(tmp_path, monkeypatch, twins, value, ci95, state):
    monkeypatch.setattr(gate.in_turn, "measure", lambda *_: Ratio(value, ci95, 15, "phone-1t"))
    before, now = twins
    _, (found,) = judged(tmp_path, {"latency": {"most": 1.1, "in_turn": True}}, now, before)
    assert found.state == state and "15 rounds in turn" in found.told
    assert ("too noisy" in found.told) == (state == "not judged")


def test_size_is_exact(tmp_path):
    for size, state in ((9_000, "passed"), (9_450, "passed"), (9_451, "failed")):
        states, _ = judged(tmp_path, {"size": {"most": 1.05}}, run(tmp_path / "now", size=size))
        assert states == [("size", state)]


def test_parity_is_of_the_run_s_own_student(tmp_path):
    rule = {"parity": {"most": 1.0}}
    assert judged(tmp_path, rule, run(tmp_path / "now", flips=10))[0] == [("parity", "passed")]
    assert judged(tmp_path, rule, run(tmp_path / "now", flips=60))[0] == [("parity", "failed")]


def test_a_file_that_is_gone_fails_and_one_that_never_was_is_refused(tmp_path):
    now = run(tmp_path / "now").model_copy(update={"artifacts": ()})
    states, _ = judged(tmp_path, {"size": {"most": 2}}, now)
    assert states == [("file", "failed")]
    with pytest.raises(ConfigError, match="has no file onnx fp64"):
        judged(tmp_path, {"files": ["onnx fp64"], "size": {"most": 2}}, now)


def test_instructions_that_cannot_be_counted_are_not_judged(tmp_path):
    before = run(tmp_path / "before")
    other = [row.model_copy(update={"sha256": "0" * 64}) for row in before.artifacts]
    now = before.model_copy(update={"artifacts": tuple(other)})
    states, (found,) = judged(tmp_path, {"instructions": {"most": 1.0}}, now, before)
    assert states == [("instructions", "not judged")] and not found.passes  # no file there


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no rule"),
        ("files = ['onnx int8']", "has no rule"),
        ("[acuracy]\nmost = 1", "did you mean `accuracy`"),
        ("[size]\nmost = -1", "size.most"),
        ("[size]", "size.most"),
        ("[size]\nmost = 1\nunjudged = 'ignore'", "size.unjudged"),
        ("[latency]\nmost = 1\nin_turn = true\nrounds = 2", "latency.rounds"),
        ("[size]\nmost = 1\nin_turn = true", "size.in_turn"),
        ("[", "cannot be read"),
    ],
)
def test_rules_that_say_nothing_or_something_wrong_are_refused(tmp_path, text, said):
    (tmp_path / "gate.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        gate.read(tmp_path / "gate.toml")


def given(path):
    path.write_text(path.name)
    return {"path": path.name, "sha256": file_sha256(path)}


@pytest.mark.parametrize(("new", "state"), [(1_100, "failed"), (1_005, "passed"), (900, "passed")])
def test_instructions_are_those_of_the_new_file_by_those_of_the_old(
    tmp_path, monkeypatch, new, state
):
    before = run(tmp_path / "before")
    (old,) = before.artifacts
    now = before.model_copy(update={"artifacts": (old.model_copy(update=given(tmp_path / "new")),)})
    before = before.model_copy(
        update={"artifacts": (old.model_copy(update=given(tmp_path / "old")),)}
    )

    def count(path):
        n = new if path.name == "new" else 1_000
        return Instructions(per_inference=n, how="here")

    monkeypatch.setattr(gate.instructions, "count", count)
    states, _ = judged(tmp_path, {"instructions": {"most": 1.01}}, now, before)
    assert states == [("instructions", state)]


def test_files_without_checksums_are_not_the_same(tmp_path):
    before = run(tmp_path / "before")
    rows = [row.model_copy(update={"sha256": None}) for row in before.artifacts]
    bare = before.model_copy(update={"artifacts": tuple(rows)})
    states, _ = judged(tmp_path, {"instructions": {"most": 1.0}}, bare, bare)
    assert states == [("instructions", "not judged")]


def test_accuracy_over_other_images_is_not_judged(tmp_path):
    now = run(tmp_path / "now", flips=300)
    other = now.dataset.model_copy(update={"test_digest": "f" * 64})
    states, (found,) = judged(
        tmp_path, {"accuracy": {"most": 0.5}}, now.model_copy(update={"dataset": other})
    )
    assert states == [("accuracy", "not judged")] and "different images" in found.told


def test_a_gate_that_asks_nothing_is_refused(tmp_path):
    now = run(tmp_path / "now")
    (row,) = now.artifacts
    other = now.model_copy(update={"artifacts": (row.model_copy(update={"format": "litert"}),)})
    with pytest.raises(ConfigError, match="no rule can be asked"):
        judged(tmp_path, {"instructions": {"most": 1}}, other, other)
    rules = {"files": ["litert int8"], "instructions": {"most": 1}}
    assert judged(tmp_path, rules, other, other)[0] == [("instructions", "not judged")]
    none = now.model_copy(update={"artifacts": (row.model_copy(update={"path": None}),)})
    with pytest.raises(ConfigError, match="no rule can be asked"):
        judged(tmp_path, {"size": {"most": 1}}, none, none)


def test_a_tool_s_escapes_do_not_break_the_xml():
    told = gate.Judgement("latency", "onnx int8", "failed", "\x1b[1;31mred\x00")
    whole = ElementTree.fromstring(judgements.junit([told], "run"))
    assert whole[0][0][0].get("message") == "[1;31mred"


def test_the_ratio_of_two_medians_has_the_interval_of_both(tmp_path):
    a, b = (
        LatencyRow(
            **{"profile": "p", "threads": 1, "host": "h", "p90_ms": 9.0, "p99_ms": 9.0},
            **{"n": 9, "warmup": 1, "first_ms": 1.0, "p50_ms": p50, "p50_ci95": ends},
        )
        for p50, ends in ((1.0, (exp(-0.03), exp(0.03))), (2.0, (2 * exp(-0.04), 2 * exp(0.04))))
    )
    ratio, ends = latency_ratio(a, b)
    assert ratio == 2.0 and ends == pytest.approx((2 * exp(-0.05), 2 * exp(0.05)))  # 3, 4 and 5


def test_what_ci_reads(tmp_path):
    rules = {"size": {"most": 1.0}, "latency": {"most": 1.0, "unjudged": "pass"}}
    now = run(tmp_path / "now", size=9_001, noisy="a <busy> host | really")
    _, found = judged(tmp_path, rules, now)
    whole = ElementTree.fromstring(judgements.junit(found, "new & <better>"))
    (suite,) = whole
    counts = {name: suite.get(name) for name in ("tests", "failures", "skipped", "errors")}
    assert counts == {"tests": "2", "failures": "1", "skipped": "1", "errors": "0"}
    assert [case.get("name") for case in suite] == ["size", "latency"]
    text = judgements.markdown(found, "new <b>", "old")
    assert r"new \<b\> fails against old" in text and r"\<busy\> host \| really" in text


def test_the_command_exits_1_where_a_rule_fails(tmp_path):
    for name, size in (("old", 9_000), ("new", 9_900)):
        pages.write(run(tmp_path / name / "made", size=size), tmp_path / "runs" / name)
    rules = tmp_path / "gate.toml"

    def ask(most, *more):
        rules.write_text(f"[size]\nmost = {most}")
        line = [sys.executable, "-m", "pipeline", "gate", "new", "--against", "old"]
        line += ["--rules", str(rules), "--runs", str(tmp_path / "runs"), *more]
        env = os.environ | {judgements.SUMMARY: str(tmp_path / "summary.md")}
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=env)

    good = ask(1.2)
    assert good.returncode == 0 and "onnx int8, size: passed" in good.stdout
    bad = ask(1.05, "--junit", str(tmp_path / "gate.xml"))
    assert (
        bad.returncode == 1 and "onnx int8, size: failed: 9,900 bytes against 9,000" in bad.stdout
    )
    assert ElementTree.parse(tmp_path / "gate.xml").getroot()[0].get("failures") == "1"
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "passes against" in summary and "fails against" in summary
