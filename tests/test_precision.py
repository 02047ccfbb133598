"""What is said of int8 and fp16: calibration, placement, layers, and other CPUs."""

import pytest

from pipeline import elsewhere, precision, verdict
from pipeline.quantized import Island
from pipeline.records import APART
from tests.small_run import (
    ARM,
    HASWELL,
    PLAIN,
    check,
    rescued,
    skipped,
    studied,
    studied_run,
    usual_run,
)


@pytest.fixture
def of(tmp_path):
    """The report of a run whose int8 file has the given checks, and whose graph the given facts."""

    def build(*checks, **facts):
        return studied_run(tmp_path, *checks, quantized=studied(**facts)).report()

    return build


# ---- how it came about ----


def test_trials_stand_beside_the_float_student(of):
    assert precision.trial_rows(of()) == [
        ("float student", "89.00", "–", "–", ""),
        ("minmax", "87.40", "−1.60", "97.00", ""),
        ("percentile", "88.60", "−0.40", "98.50", ""),
        ("fine-tuned", "89.20", "+0.20", "99.00", "kept"),
    ]
    note = precision.trials_note(of())
    assert note.startswith("Chosen on the validation split; ranges of the activations from 512 cal")
    assert "The fine-tuned graph has the ranges of percentile" in note


def test_one_trial_was_not_chosen(of):
    note = precision.trials_note(of(trials=studied().trials[:1]))
    assert "Chosen" not in note and note.endswith("from 512 calibration images.")


def test_islands_of_a_kind_are_counted(of):
    assert precision.islands(of()) == [
        "3 float islands, HardSigmoid: there is no 8-bit kernel.",
        "1 float island, Mul ×2, Add: its inputs are not quantized.",
    ]
    assert precision.islands(of(fused=PLAIN.fused))[0].startswith("No float island: ")


def test_almost_all_is_not_all(of):
    told = dict(precision.facts(of()))
    assert told["in integer kernels"] == "99.9 % of the multiply-adds"
    assert told["types on CPUs"] == "u8s8: uint8 activations, int8 weights"
    island = Island(operators=("Clip",), reason="no kernel")
    fused = PLAIN.fused.model_copy(update={"islands": (island,)})
    assert dict(precision.facts(of(fused=fused)))["in integer kernels"].startswith("100.0 %")


# ---- layers ----


def test_layers_gain_against_the_whole_graph_in_int8(of):
    rows = precision.layer_rows(of(rescue=rescued()))
    assert [(row.place, row.name, row.kept) for row in rows] == [
        (1, "node_Conv_810", False),
        (2, "node_Conv_812", True),
        (3, "node_Conv_814", True),
    ]
    assert [row.gain_db for row in rows] == pytest.approx([-0.25, 1.5, 0.5])
    assert [row.place for row in precision.worst_layers(of(), 2)] == [2, 3]
    assert "logits are 24.25 dB above their rounding noise" in precision.layers_note(of())
    assert precision.decibels(-0.25) == "−0.25 dB"


def test_a_rescue_says_what_it_costs(of):
    assert precision.rescue_lines(of(rescue=rescued())) == [
        "With all layers int8 it lost 1.30 points of top-1 on the validation split, more than "
        "quantize.max_drop = 0.5 allows; with 2 layers in float it loses 0.40. That takes 1.21× "
        "the time on this host, and 2.56 instead of 2.40 MB; 9 graphs were tried.",
        "In float: node_Conv_812, node_Conv_814.",
    ]


@pytest.mark.parametrize(("drop", "warned"), [(0.4, False), (0.5, False), (0.8, True)])
def test_a_rescue_that_fails_is_a_warning(of, drop, warned):
    found = [text for text in verdict.warnings(of(rescue=rescued(drop))) if "max_drop" in text]
    assert bool(found) == warned
    assert all("int8 loses 0.80 points" in text and "2 layers in float" in text for text in found)


# ---- other CPUs ----


def warned(report):
    return [text for text in verdict.warnings(report) if "accurate on emulated" in text]


def test_cpus_that_agree_are_a_finding_and_no_warning(of):
    report = of(check(ARM, 0.9, 0.001), check(HASWELL, 0.899))
    assert str(verdict.headline(report)[2]) == (
        "onnx int8 answers alike on emulated arm64 and emulated x86 without VNNI. At most 0.30 % "
        "of 1,000 test images get another class than on this host; top-1 is within 0.10 points."
    )
    assert warned(report) == [] and elsewhere.not_run(report) == []
    assert elsewhere.cpu_rows(report)[1] == (
        *("emulated x86 without VNNI", HASWELL, "", "1,000", "89.90", "90.00", "0.10", "0.30"),
    )


def test_one_cpu_that_answers_the_same_in_every_case(of):
    report = of(check(ARM, 0.9, 0.0), *skipped("haswell"))
    assert str(verdict.headline(report)[2]) == (
        "onnx int8 answers the same on emulated arm64. Each of 1,000 test images gets the same "
        "class as on this host."
    )


def test_as_accurate_is_not_alike(of):
    report = of(check(ARM, 0.9, 0.015))
    assert verdict.headline(report)[2].claim == "onnx int8 is as accurate on emulated arm64."


def test_a_limit_is_not_passed_by_a_hair(of):
    assert warned(of(check(ARM, 0.898))) == []
    assert 100 * abs(0.898 - 0.9) > APART  # in floating point


def test_differences_that_cancel_out_are_differences(of):
    (told,) = [text for text in verdict.warnings(of(check(HASWELL, 0.9, 0.05))) if "VNNI" in text]
    assert told.startswith(
        "onnx int8 gives 5.00 % of 1,000 test images another class on emulated x86 without VNNI "
        "than on this host: x86 CPUs without VNNI"
    )


def test_a_cpu_without_vnni_that_differs_is_explained(of):
    report = of(check(ARM, 0.9), check(HASWELL, 0.894, 0.012))
    assert str(verdict.headline(report)[2]) == (
        "onnx int8 does not answer alike on every CPU. On emulated x86 without VNNI top-1 is "
        "89.40 % against 90.00 % on this host over the same 1,000 test images; 1.20 % of them get "
        "another class."
    )
    assert warned(report) == [
        "onnx int8 is 0.60 points less accurate on emulated x86 without VNNI than on this host, "
        "over 1,000 test images: x86 CPUs without VNNI add products of uint8 and int8 in 16 bits, "
        'which can overflow. Try quantize.scheme = "u8u8" or "u8s8-reduced".'
    ]


def test_other_differences_are_of_rounding(of):
    (told,) = warned(of(check(HASWELL, 0.906), scheme="u8u8"))
    assert "0.60 points more accurate" in told and "its kernels round differently." in told
    assert told.endswith('Try quantize.scheme = "u8s8-reduced".')


def test_the_remedy_is_a_scheme_that_was_seen_to_be_the_same(of):
    tried = (
        check(HASWELL, 0.894, scheme="u8s8"),
        check(HASWELL, 0.88, scheme="u8u8"),
        check(HASWELL, 0.9, scheme="s8s8"),
    )
    (told,) = warned(of(check(HASWELL, 0.894), checks=tried))
    assert told.endswith('Set quantize.scheme = "s8s8", which was the same on validation images.')
    spoilt = [check(HASWELL, 0.8, scheme=name) for name in ("u8s8", *elsewhere.REMEDIES)]
    (told,) = warned(of(check(HASWELL, 0.894), checks=tuple(spoilt)))
    assert "No other scheme was the same" in told


def test_schemes_that_were_passed_over_are_shown_and_no_warning(of):
    tried = (check(HASWELL, 0.85, scheme="u8s8"), check(HASWELL, 0.9, scheme="u8u8"))
    report = of(check(HASWELL, 0.9), checks=tried, scheme="u8u8")
    assert [row.scheme for row in elsewhere.scheme_rows(report)] == ["u8s8", "u8u8"]
    assert warned(report) == []
    assert elsewhere.scheme_rows(of(checks=tried[:1])) == []


def test_without_the_file_the_checks_that_kept_the_scheme_warn(of):
    (told,) = warned(of(checks=(check(HASWELL, 0.85, scheme="u8s8"),)))
    assert told.startswith("The int8 graph is 5.00 points less accurate") and "validation" in told


def test_what_could_not_be_run_is_said_quietly(of):
    report = of(*skipped("haswell", "arm64"))
    assert elsewhere.not_run(report) == [
        "onnx int8 was not tried on x86 without VNNI and arm64: not fetched into /cache/emulators. "
        "python -m pipeline fetch emulators (needs Debian's apt-get; about 140 MB)."
    ]
    assert len(verdict.headline(report)) == 2 and elsewhere.cpu_rows(report) == []
    assert verdict.warnings(report) == ["Exported but not run here, so unverified: coreml fp16."]


def test_a_machine_of_that_kind_claims_nothing(of):
    report = of(check("onnxruntime 1.32.0 on arm64 (native)", 0.9, 0.0))
    assert len(verdict.headline(report)) == 2
    assert elsewhere.cpu_rows(report)[0].cpu == "arm64"


# ---- files that are not made for CPUs ----


def test_files_made_for_others_are_told_of_where_they_were_measured(tmp_path):
    run = usual_run(tmp_path)
    assert precision.file_notes(run.report()) == ""
    logits = run.logits(100)
    run.add_artifact("onnx", "fp16", 10, run.measured("c", logits, 3.0, logits))
    run.add_artifact(
        "onnx", "int8", 10, run.measured("d", logits, 2.0, logits), variant="symmetric"
    )
    told = precision.file_notes(run.report())
    assert told.startswith("On x86 CPUs ONNX Runtime computes onnx fp16 in float32, with weights")
    assert told.endswith(
        "onnx int8 (symmetric) is made for TensorRT: kernels of CPUs want zero points."
    )
    assert verdict.headline(run.report())[1].claim.startswith("Against fp32, onnx int8 is ")
    assert "float32" not in verdict.headline(run.report())[1].evidence


def test_int8_beside_fp16_alone_says_what_that_is(tmp_path):
    run = usual_run(tmp_path)
    artifact, found, place = run.artifacts[0]
    run.artifacts[0] = (artifact.model_copy(update={"precision": "fp16"}), found, place)
    finding = verdict.headline(run.report())[1]
    assert finding.claim.startswith("Against fp16, onnx int8 is")
    assert "On x86 CPUs ONNX Runtime computes onnx fp16 in float32" in finding.evidence
