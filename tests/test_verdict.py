"""The verdict in words and rounded numbers."""

import pytest

from benchmarks.stats import PairedDifference
from pipeline import comparing, verdict, wording
from tests.small_run import SmallRun, run_of_seeds, usual_run

# ---- numbers ----


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.29, "0.290"), (1.5, "1.50"), (12.34, "12.3"), (1234.6, "1,235")],
)
def test_numbers_have_three_digits(value, text):
    assert wording.number(value) == text


def test_points_are_signed_and_zero_has_no_sign():
    assert wording.points(0.0131) == "+1.31"
    assert wording.points(-0.0131) == "−1.31"
    assert wording.points(-0.000001) == "0.00"


# ---- the verdict ----


def gained(report, low, high):
    gain = PairedDifference(difference=(low + high) / 2, ci95=(low, high), mcnemar_p=0.2, n=1200)
    return report.model_copy(update={"gain": gain})


def test_a_gain_is_claimed_only_when_its_interval_excludes_zero(report):
    claim = [verdict.headline(gained(report, *ci))[0].claim for ci in ((0.01, 0.03), (-0.01, 0.03))]
    assert claim[0] == "Distillation gained 2.00 points of top-1."
    assert claim[1] == "Distillation made no certain difference."
    assert verdict.headline(gained(report, -0.03, -0.01))[0].claim.startswith(
        "Distillation lost 2.0"
    )


def test_an_uncertain_gain_is_a_warning(report):
    assert not any("may be chance" in text for text in verdict.warnings(gained(report, 0.01, 0.03)))
    found = [
        text for text in verdict.warnings(gained(report, -0.01, 0.03)) if "may be chance" in text
    ]
    assert found and "−1.00 to +3.00 points" in found[0]


def test_a_gain_names_its_student_and_its_teacher(run):
    checkpoint, found = run.models[2]
    facts = {"width": 0.5, "stem_stride": 2, "params": 695_562, "macs": 1_702_400}
    run.models[2] = (checkpoint.model_copy(update=facts), found)
    report = run.report()
    told = verdict.headline(report)[0].evidence
    assert told.endswith(
        "1,200 test images, one seed. Student: mobilenet_v2 ×0.5, stem stride 2, "
        "0.696 M parameters, 1.70 M MACs; teacher 95.00 %."
    )
    tuned = report.models[2].model_copy(update={"start": "weights.pth"})
    assert wording.network(tuned).endswith(" M MACs, started from weights.pth")


def test_a_gain_over_seeds_follows_that_of_the_shipped_one(tmp_path):
    finding = verdict.headline(run_of_seeds(tmp_path).report())[0]
    assert finding.claim == "Distillation gained 2.50 points of top-1 with seed 0."
    assert (
        "1,200 test images. Over 3 seeds: mean gain +2.50 points, 95 % interval +1.26 to +3.74 "
        "(each seed's own +2.50, +2.00, +3.00). Student: mobilenet_v2, " in finding.evidence
    )


def test_seeds_have_a_table_that_ends_with_the_mean(tmp_path, report):
    rows = verdict.seed_rows(run_of_seeds(tmp_path).report())
    assert rows[1][:4] == ("1", "89.17", "91.17", "+2.00")
    assert rows[3] == (
        *("mean", "89.22 (88.98–89.46)", "91.72 (90.27–93.18)", "+2.50", "+1.26 to +3.74"),
    )
    assert verdict.seed_rows(report) == [] and verdict.seeds_note(report) == ""


def test_seeds_without_baseline_tell_the_students_spread(tmp_path):
    run = SmallRun(tmp_path)
    run.add_model("student", 100, 9.0)
    run.add_seed(4, student=112)
    report = run.report()
    told = verdict.headline(report)[0].evidence
    assert "no baseline to compare it with. Over 2 seeds: mean top-1 91.17 %" in told
    assert "(each seed's own 91.67, 90.67). Student: mobilenet_v2, 2.24 M param" in told
    assert verdict.seed_rows(report)[0] == ("0", "–", "91.67", "–", "–")


@pytest.mark.parametrize(
    ("students", "words"),
    [
        ((101, 99), None),
        ((140, 131), "seed 0 may be that seed's luck: the 95 % interval of the mean over 3 seeds"),
    ],
)
def test_a_gain_that_other_seeds_do_not_confirm_is_a_warning(run, students, words):
    for seed, wrong in enumerate(students, start=1):
        run.add_seed(seed, baseline=130, student=wrong)
    found = [text for text in verdict.warnings(run.report()) if "luck" in text]
    assert bool(found) == bool(words)
    assert all(words in text and text.endswith("includes zero.") for text in found)


def test_seeds_that_say_the_opposite_are_a_warning(tmp_path):
    report = run_of_seeds(tmp_path).report()
    found = [text for text in verdict.warnings(gained(report, -0.03, -0.01)) if "luck" in text]
    assert found and found[0].endswith("lies on the other side of zero.")


def test_int8_is_set_against_float_of_the_same_format(run):
    student = run.logits(100)
    run.add_artifact("coreml", "int8", 10, run.measured("c", student, 2.0, student))
    finding = verdict.headline(run.report())[1]
    assert finding.claim.startswith("Against fp32, onnx int8 is 2.3× as fast (no interval), 3.7× ")
    assert "Median 1.30 against 3.00 ms; 2.40 against 8.90 MB" in finding.evidence


def test_a_slow_int8_is_called_slow(run):
    artifact, _, place = run.artifacts[1]
    run.artifacts[1] = (artifact, run.measured("b", run.logits(100), 4.5), place)
    report = run.report()
    claim = verdict.headline(report)[1].claim
    assert claim.startswith("Against fp32, onnx int8 takes 1.5× as long (no interval), is 3.7× ")
    slow = [text for text in verdict.warnings(report) if "slower than fp32 on this host" in text]
    assert slow and "4.50 against 3.00 ms" in slow[0]


def timed(run, plain, int8):
    """A report in which the float and the int8 file have these latencies, over the usual ones."""
    report = run.report()
    rows = list(report.artifacts)
    for at, changes in enumerate((plain, int8)):
        latency = rows[at].latency.model_copy(update=changes)
        rows[at] = rows[at].model_copy(update={"latency": latency})
    return report.model_copy(update={"artifacts": tuple(rows)})


def told_of(report):
    """Claim and evidence of int8, and whether it is called slow."""
    finding = verdict.headline(report)[1]
    slow = any("slower than fp32" in text for text in verdict.warnings(report))
    return finding.claim, finding.evidence, slow


def test_a_speed_is_claimed_only_where_the_intervals_lie_apart(run):
    plain = {"p50_ms": 3.0, "p50_ci95": (2.96, 3.04)}
    claim, evidence, _ = told_of(timed(run, plain, {"p50_ms": 2.9, "p50_ci95": (2.85, 2.95)}))
    assert claim.startswith("Against fp32, onnx int8 is 1.03× as fast, 3.7× smaller and ")
    assert evidence.startswith("Median 2.90 (2.85–2.95) against 3.00 (2.96–3.04) ms; 2.40 against ")
    claim, _, slow = told_of(timed(run, plain, {"p50_ms": 3.3, "p50_ci95": (3.1, 3.5)}))
    assert slow and "takes 1.1× as long" in claim
    for p50, ends in ((2.9, (2.8, 3.0)), (3.3, (2.9, 3.7)), (3.08, (3.04, 3.12))):
        claim, _, slow = told_of(timed(run, plain, {"p50_ms": p50, "p50_ci95": ends}))
        assert not slow
        assert claim.startswith(
            "Against fp32, onnx int8 shows no certain difference in speed, is 3.7× smaller and "
        )


def test_a_noisy_speed_without_an_interval_is_none(run):
    for plain, int8 in (({"noisy": "busy"}, {}), ({}, {"noisy": "busy"})):
        claim, _, slow = told_of(timed(run, plain, int8 | {"p50_ms": 4.5}))
        assert "no certain difference in speed" in claim and not slow
    same = timed(run, {"p50_ms": 3.0}, {"p50_ms": 3.0})
    assert "no certain difference" in told_of(same)[0] and not told_of(same)[2]


@pytest.mark.parametrize("field", ["batch", "processes"])
def test_speeds_of_other_batches_or_processes_are_not_compared(run, field):
    report = timed(run, {field: 8}, {"p50_ms": 4.5})
    claim, _, slow = told_of(report)
    assert claim.startswith("Against fp32, onnx int8 is 3.7× smaller and ") and not slow
    assert any("different hosts or profiles" in text for text in verdict.warnings(report))
    a, b = (row.latency for row in report.artifacts[:2])
    assert a and b and "8 / 1" in comparing.incomparable(a, b)


PLAIN_MS = {"Conv": 1.5, "Mul": 0.1, "ReorderInput": 0.04, "Transpose": 0.05, "Gemm": 0.05}
INT8_MS = {
    **{"QLinearConv": 1.2, "Mul": 0.55, "QLinearMul": 0.4, "QuantizeLinear": 0.2},
    **{"DequantizeLinear": 0.175, "HardSigmoid": 0.2, "Softmax": 0.15, "QGemm": 0.04},
}


USUAL = {"QLinearConv": 52, "QLinearAdd": 10, "ReduceMean": 1}


def slow(run, plain_ms, int8_ms, p50=(1.64, 2.9), counts=USUAL):
    """The warning of an int8 file that took so long, with such profiles."""
    for i, spent in enumerate((plain_ms, int8_ms)):
        artifact, _, place = run.artifacts[i]
        found = run.measured("ab"[i], run.logits(100), p50[i], operators_ms=spent)
        run.artifacts[i] = (artifact, found, place)
    report = run.report()
    quantization = report.quantization.model_copy(update={"operators": counts})
    report = report.model_copy(update={"quantization": quantization if counts else None})
    found = [text for text in verdict.warnings(report) if "slower than" in text]
    assert len(found) == 1
    return found[0]


def test_a_slow_int8_names_the_operators_to_blame(run):
    assert slow(run, PLAIN_MS, INT8_MS) == (
        "onnx int8 is slower than fp32 on this host (p50 2.90 against 1.64 ms). Profiled, it "
        "spends more on multiplications (0.950 against 0.100 ms), conversions between float and "
        "int8 (0.375 against 0 ms), activations (0.200 against 0 ms); less on convolutions "
        "(1.20 against 1.50 ms), layout (0 against 0.090 ms)."
    )
    told = slow(run, PLAIN_MS, {**PLAIN_MS, "Softmax": 1.3})
    assert told.endswith("Profiled, it spends more on Softmax (1.30 against 0 ms).")


def test_a_slow_int8_without_both_profiles_has_the_usual_causes(run):
    for profiles in ((None, INT8_MS), (PLAIN_MS, None), (PLAIN_MS, {})):
        told = slow(run, *profiles)
        assert "1.64 ms): operators that stay float are surrounded by conversions, this" in told
    artifact, found, place = run.artifacts[0]
    run.artifacts[0] = (artifact.model_copy(update={"precision": "fp16"}), found, place)
    assert "slower than fp16 on this host (p50 2.90 against 1.64 ms): operators that" in slow(
        run, PLAIN_MS, INT8_MS
    )


def test_a_tiny_network_is_slow_for_the_number_of_its_operators(run):
    told = slow(run, PLAIN_MS, INT8_MS, (0.5, 0.7))
    assert told.endswith(
        "against 0.500 ms): in so small a network the fixed costs of its 63 operators outweigh "
        "their arithmetic."
    )
    counts = {"QLinearConv": 50, "QuantizeLinear": 6, "DequantizeLinear": 6}
    told = slow(run, PLAIN_MS, INT8_MS, (0.5, 0.7), counts)
    assert "its 62 operators (12 of them conversions between float and int8) outweigh" in told
    told = slow(run, PLAIN_MS, INT8_MS, (0.5, 0.7), None)
    assert "costs of its operators outweigh" in told


def test_a_gap_that_the_operators_do_not_explain(run):
    assert slow(run, PLAIN_MS, PLAIN_MS, (1.5, 2.0)).endswith(
        "Profiled, its 63 operators take no longer in all: fixed costs between them, or other work "
        "on this machine."
    )
    assert slow(run, PLAIN_MS, {**PLAIN_MS, "Gemm": 0.25}, (1.5, 2.0)).endswith(
        "it spends more on matrix products (0.250 against 0.050 ms); fixed costs of its 63 "
        "operators, or other work on this machine, make up the rest."
    )


def test_a_symmetric_int8_is_not_called_slow(run):
    artifact, _, place = run.artifacts[1]
    found = run.measured("b", run.logits(100), 4.5, operators_ms=INT8_MS)
    run.artifacts[1] = (artifact.model_copy(update={"variant": "symmetric"}), found, place)
    assert not any("slower than" in text for text in verdict.warnings(run.report()))


def test_a_usual_run_has_only_the_warning_of_what_was_not_run(report):
    expected = "Exported but not run here, so unverified: coreml fp16."
    assert verdict.warnings(report) == [expected]


def test_few_test_images_are_a_warning(tmp_path):
    report = usual_run(tmp_path, n=360).report()
    assert any("Only 360 test images" in text for text in verdict.warnings(report))


def test_low_agreement_is_a_warning_and_worse_for_a_float_file(run):
    student = run.logits(100)
    wrong = run.logits(0, base=student, flips=60)
    run.add_artifact("ort", "fp32", 10, run.measured("c", wrong, 2.0, student))
    run.add_artifact("ort", "int8", 10, run.measured("c", wrong, 2.0, student))
    run.add_artifact("litert", "int8", 10, run.measured("c", wrong, 2.0, student))
    found = [text for text in verdict.warnings(run.report()) if "the same class as" in text]
    said = "the same class as the student on fewer than 99 % of the test images"
    assert found == [
        f"ort fp32 (95.00 %) names {said}; for float files that points to a faulty export.",
        f"ort int8 (95.00 %) and litert int8 (95.00 %) name {said}.",
    ]


@pytest.mark.parametrize(
    ("relative", "settings", "told"),
    [
        (0.24, {}, None),
        (0.26, {}, "onnx int8 is near the limit of parity: its answers are 52 % as far from the "),
        (0.26, {"max_difference": 1.0}, None),
        (0.09, {"max_difference": 0.1}, "onnx int8 is near the limit of parity: its answers are 9"),
        (0.75, {}, "onnx int8 is beyond the limit of parity: its answers are 1.5 times as far"),
        (None, {}, None),
    ],
)
def test_parity_near_its_limit_is_a_warning(run, relative, settings, told):
    report = run.report(settings={"export": {"formats": ["onnx"], "onnx": settings}})
    rows = list(report.artifacts)
    parity = rows[1].parity.model_copy(update={"relative": relative})
    rows[1] = rows[1].model_copy(update={"parity": parity})
    changed = report.model_copy(update={"artifacts": tuple(rows)})
    found = [text for text in verdict.warnings(changed) if "limit of parity" in text]
    assert [text.startswith(told or "") for text in found] == [True] * bool(told)


def test_a_useless_teacher_is_a_warning(run):
    checkpoint, _ = run.models[0]
    run.models[0] = (checkpoint, run.measured("teacher", run.logits(200), 40.0))
    assert any("no better than the baseline" in text for text in verdict.warnings(run.report()))


# ---- the contract ----


def test_the_contract_speaks_of_core_ml_where_there_is_such_a_file(report):
    lines = verdict.contract(report)
    assert lines[0].startswith("Files for ONNX Runtime take uint8 images [batch, 8, 8, 1] (NHWC, ")
    assert "image of 8 × 8 pixels (grey, 0 to 255)" in lines[1]
    assert lines[2] == "They answer with logits: onnx fp32, onnx int8 and coreml fp16."
    without = report.model_copy(update={"artifacts": report.artifacts[:2]})
    told = "They answer with logits: onnx fp32 and onnx int8."
    assert verdict.contract(without) == [lines[0], told, lines[-1]]
