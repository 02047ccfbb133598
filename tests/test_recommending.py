"""What to ship to whom: each rule on records of a run, its files' answers chosen image by image."""

import numpy as np
import pytest

from benchmarks.predict import predict
from benchmarks.published.fitting import workloads
from pipeline import on_device
from pipeline.phones import Phone, PhoneFile
from pipeline.recommending import RULE, TARGETS, recommend
from pipeline.records import Measurement
from tests.small_run import ARM, HASWELL, SmallRun, check

ANDROID, IOS, NVIDIA, BROWSER = range(4)
EVERY = ("android", "ios", "nvidia", "web")


class Files(SmallRun):
    """A run with a student that is wrong on the first 100 of 1200 images, and files to choose."""

    def __init__(self, folder):
        super().__init__(folder)
        self.student = self.add_model("student", 100, 9.0)

    def wrong_on(self, *spans):
        """The student's logits, moved so that the images of these spans are named wrongly."""
        wrong = np.zeros(self.n, dtype=bool)
        for first, last in spans:
            wrong[first:last] = True
        moved = wrong != (self.student.argmax(axis=1) != self.truth)
        return np.where(moved[:, None], self._other(wrong), self.student)

    def _other(self, wrong):
        named = (self.truth + wrong) % len(self.names)
        return np.eye(len(self.names), dtype=np.float32)[named] * 4

    def file(self, name, precision, size, p50=None, *, wrong=((0, 100),), platforms=EVERY, **more):
        """Add a file; without `p50` it was not timed."""
        found = self.measured(
            f"{name}-{precision}", self.wrong_on(*wrong), p50 or 1.0, self.student
        )
        changes: dict[str, object] = {} if p50 else {"latency": None}
        changes |= {key: more.pop(key) for key in list(more) if key in Measurement.model_fields}
        if "evaluated_with" in more:
            accuracy = found.accuracy
            assert accuracy is not None
            told = {"evaluated_with": more.pop("evaluated_with")}
            changes["accuracy"] = accuracy.model_copy(update=told)
        found = found.model_copy(update=changes)
        sha256 = f"{len(self.artifacts):064d}"
        self.add_artifact(name, precision, size, found, platforms=platforms, sha256=sha256, **more)
        artifact, found, _ = self.artifacts[-1]
        place = f"{platforms[0]}/{name}/{precision}/file" if platforms else f"other/{name}/file"
        self.artifacts[-1] = (artifact, found, place)

    def answer(self, target, **more):
        report = self.report()
        return recommend(report.model_copy(update=more) if more else report)[target]


@pytest.fixture
def run(tmp_path):
    return Files(tmp_path / "records")


def test_the_fastest_that_keeps_the_accuracy_is_named(run):
    run.file("onnx", "fp32", 9_000_000, 3.0)
    run.file("onnx", "int8", 2_400_000, 1.3, wrong=((0, 103),))  # 0.25 points, not for certain
    run.file("litert", "int8", 2_000_000, 0.9, wrong=((0, 112),))  # 1 point, at least 0.39
    found = run.answer(ANDROID)
    assert found.title == "onnx int8"
    assert found.why == "The fastest on this host of 2 onnx files that keep the accuracy."
    assert found.evidence == (
        "1.30 ms on this host, 2.40 MB, top-1 91.42 % (−0.25 points against the student and onnx "
        "fp32, 95 % interval −0.61 to +0.11)."
    )
    assert found.instead == (
        "onnx fp32 is 0.25 points more accurate (not certain), but takes 2.3× as long and is 3.8× "
        "larger."
    )


def test_what_a_cheaper_file_loses_is_told(run):
    run.file("onnx", "fp32", 9_000_000, 3.0)
    run.file("onnx", "int8", 2_000_000, 1.5, wrong=((0, 112),))
    found = run.answer(ANDROID)
    assert found.title == "onnx fp32" and found.why == "The only onnx file that keeps the accuracy."
    assert found.evidence == (
        "3.00 ms on this host, 9.00 MB, top-1 91.67 % (0.00 points against the student, 95 % "
        "interval −0.23 to +0.23)."
    )
    assert (
        found.instead
        == "onnx int8 is 2.0× as fast and 4.5× smaller, but is 1.00 points less accurate."
    )


def test_an_uncertain_loss_keeps_the_accuracy_up_to_a_point(run):
    run.file("onnx", "fp32", 9_000_000, 3.0)
    run.file("ort", "int8", 9_000_000, 2.0, wrong=((50, 158),))  # 0.67 points less, may be chance
    assert run.answer(ANDROID).title == "ort int8"
    run.file("litert", "int8", 9_000_000, 1.0, wrong=((50, 164),))  # 1.17 less, may be chance
    report = run.report()
    assert recommend(report)[ANDROID].title == "ort int8"
    assert recommend(report)[ANDROID].instead == (
        "onnx fp32 is 0.67 points more accurate (not certain), but takes 1.5× as long."
    )


def timed(run, title, **changes):
    """The run's report with the latency of one file changed."""
    report = run.report()
    rows = [
        row.model_copy(update={"latency": row.latency.model_copy(update=changes)})
        if row.title == title and row.latency
        else row
        for row in report.artifacts
    ]
    return report.model_copy(update={"artifacts": tuple(rows)})


def test_of_files_equally_fast_the_smallest_is_named(run):
    run.file("onnx", "fp32", 9_000_000, 3.0)
    run.file("onnx", "int8", 2_400_000, 3.1)
    found = recommend(timed(run, "onnx int8", p50_ci95=(2.9, 3.3)))[ANDROID]
    assert found.title == "onnx int8" and "the smallest of 2 that share first" in found.why.lower()
    assert "3.10 (2.90–3.30) ms on this host" in found.evidence and found.instead == ""
    assert recommend(timed(run, "onnx int8", p50_ci95=(3.05, 3.3)))[ANDROID].title == "onnx fp32"


def test_a_noisy_latency_and_that_of_another_host_do_not_count(run):
    for name, p50 in (("onnx", 3.0), ("ort", 2.0), ("litert", 1.0)):
        run.file(name, "fp32", 9_000_000, p50)
    found = recommend(timed(run, "litert fp32", noisy="busy"))[ANDROID]
    assert found.title == "ort fp32"
    assert found.why == "The fastest on this host of 3 files that keep the accuracy (2 timed)."
    assert recommend(timed(run, "litert fp32", host="another"))[ANDROID].title == "ort fp32"


def test_untimed_files_are_chosen_by_size(run):
    run.file("onnx", "fp32", 9_000_000)
    run.file("onnx", "int8", 2_400_000)
    found = run.answer(ANDROID)
    assert found.title == "onnx int8" and found.evidence.startswith("2.40 MB, top-1 91.67 %")
    assert found.why == (
        "The smallest of 2 onnx files that keep the accuracy; no latencies compare them."
    )


def test_files_timed_too_noisily_to_compare_are_not_called_untimed(run):
    run.file("onnx", "fp32", 9_000_000, 3.0)
    run.file("onnx", "int8", 2_400_000)
    found = recommend(timed(run, "onnx fp32", noisy="busy"))[ANDROID]
    assert found.title == "onnx int8" and found.why.endswith("; no latencies compare them.")
    one = recommend(run.report())[ANDROID]  # one of the two was timed well
    assert one.title == "onnx int8" and one.why.endswith("; no latencies compare them.")


# ---- against the student ----


def test_where_no_file_keeps_the_students_accuracy_that_is_said_first(run):
    run.file("coreml", "w4a16", 5_000_000, 2.0, wrong=((0, 400),), platforms=("ios",))
    alone = run.answer(IOS)
    assert alone.why == (
        "No file keeps the student’s accuracy, and the best loses 25.00 points; the only coreml "
        "file that is that accurate."
    )
    assert alone.evidence.startswith(
        "2.00 ms on this host, 5.00 MB, top-1 66.67 % (−25.00 points against the student, 95 % "
        "interval −27.4"
    )
    run.file("coreml", "w6a16", 6_000_000, 3.0, wrong=((0, 400),), platforms=("ios",))
    assert run.answer(IOS).why == (
        "No file keeps the student’s accuracy, and the best loses 25.00 points; the fastest on "
        "this host of 2 coreml files that are that accurate."
    )


def test_without_a_student_in_the_report_nothing_is_said_of_it(run):
    run.file("coreml", "w4a16", 5_000_000, wrong=((0, 400),), platforms=("ios",))
    found = recommend(run.report().model_copy(update={"models": ()}))[IOS]
    assert found.why == "The only coreml file that keeps the accuracy."
    assert found.evidence == "5.00 MB, top-1 66.67 %."


# ---- what speaks against a file ----


def with_checks(report, *checks, title="onnx int8"):
    """The report with what that file did on other CPUs."""
    rows = [
        row.model_copy(update={"cpus": checks}) if row.title == title else row
        for row in report.artifacts
    ]
    return report.model_copy(update={"artifacts": tuple(rows)})


def test_a_file_that_answers_otherwise_on_arm64_is_not_named_for_phones(run):
    run.file("onnx", "fp32", 9_000_000, 3.0)
    run.file("onnx", "int8", 2_400_000, 1.0)
    run.file("ort", "int8", 2_300_000, 0.9, platforms=("android", "ios"))
    report = run.report()
    far, near = check(ARM, 0.60, differs=0.35), check(ARM, 0.899)
    assert recommend(with_checks(report, near))[ANDROID].title == "ort int8"
    found = recommend(with_checks(report, near, far))
    # The ORT file holds the same graph for the same kernels.
    assert [each.title for each in found] == ["onnx fp32", "onnx fp32", "onnx int8", "onnx fp32"]


def test_a_file_that_overflows_on_other_x86_is_not_named_for_browsers(run):
    run.file("onnx", "int8", 2_400_000, 1.0)
    found = recommend(with_checks(run.report(), check(HASWELL, 0.80, differs=0.15)))
    assert found[ANDROID].title == "onnx int8" and found[BROWSER].row is None
    assert found[BROWSER].evidence == (
        "onnx int8 answers otherwise on emulated x86 without VNNI than here: it names 15.00 % of "
        "1,000 test images otherwise, and 80.00 % of them rightly, against 90.00 % here."
    )


def test_the_rule_names_all_that_speaks_against_a_file():
    for told in ("not run here", "its precision is allowed", "on a phone", "on arm64", "any CPU"):
        assert told in RULE
    assert "does not answer as the student does" not in RULE  # int8 seldom does


@pytest.mark.parametrize("first", [True, False])
def test_of_two_files_of_one_title_only_the_faulty_one_is_left_out(run, first):
    run.file("onnx", "fp32", 9_000_000, 3.0)
    run.file("onnx", "int8", 2_400_000, 1.0)
    report = run.report()
    plain, int8 = report.artifacts
    faulty = int8.model_copy(
        update={
            "bytes": 10,
            "parity": int8.parity.model_copy(update={"max_abs_diff": None}),
            "latency": int8.latency.model_copy(update={"p50_ms": 0.1}),
        }
    )
    rows = (plain, faulty, int8) if first else (plain, int8, faulty)
    found = recommend(report.model_copy(update={"artifacts": rows}))[ANDROID]
    assert found.row is int8 and found.evidence.startswith("1.00 ms on this host, 2.40 MB")


def test_nothing_measured_is_nothing_recommended(run):
    unseen = {"accuracy": None, "parity": None, "skipped": "needs macOS."}
    run.file("coreml", "fp16", 10, platforms=("ios",), **unseen)
    run.file("coreml", "w8a16", 10, platforms=("ios",), **unseen)
    found = run.answer(IOS)
    assert found.row is None and found.path is None and found.title == "none"
    assert found.why == "No file was verified, so none is recommended."
    assert found.evidence == (
        "coreml fp16 and coreml w8a16 were exported, not run here, so unverified: needs macOS."
    )


def test_what_is_missing_is_said(run):
    run.add_artifact(
        *("tensorrt_rtx", "fp16", None, Measurement()),
        **{"skipped": "needs a GPU", "platforms": ("nvidia",)},
    )
    assert run.answer(NVIDIA).why == "There is no file."
    assert run.answer(NVIDIA).evidence == "tensorrt_rtx fp16: needs a GPU."
    assert run.answer(IOS).evidence == "export.formats has none of coreml, ort or executorch."


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_abs_diff": None}, "gave outputs that are not numbers"),
        ({"relative": 0.002}, "is farther from the student than is allowed"),
        ({"top1_agreement": 0.9}, "names the student's class on 90.00 % of the test images only"),
    ],
)
def test_a_failed_parity_is_never_named(run, changes, told):
    run.file("onnx", "fp32", 9_000_000, 1.0)
    report = run.report()
    row = report.artifacts[0]
    parity = row.parity.model_copy(update={"relative": 0.0, "top1_agreement": 1.0} | changes)
    rows = (row.model_copy(update={"parity": parity}),)
    found = recommend(report.model_copy(update={"artifacts": rows}))[ANDROID]
    assert found.row is None and found.why == "No file can be recommended."
    assert found.evidence.startswith(f"onnx fp32 {told}")


def test_a_difference_that_the_run_allowed_is_no_fault(run):
    run.file("onnx", "fp32", 9_000_000, 1.0)
    report = run.report(settings={"export": {"onnx": {"max_difference": 0.5}}})
    row = report.artifacts[0]
    parity = row.parity.model_copy(update={"relative": 0.4})
    rows = (row.model_copy(update={"parity": parity}),)
    assert recommend(report.model_copy(update={"artifacts": rows}))[ANDROID].title == "onnx fp32"


# ---- each target ----


def test_each_target_chooses_among_its_own_files(run):
    run.file("litert", "int8", 9, 1.0, platforms=("android",))
    run.file("coreml", "fp16", 9, platforms=("ios",), evaluated_with="coreml reference (torch 2)")
    run.file("tensorrt", "fp16", 9, platforms=("nvidia",))
    run.file("onnx", "fp32", 9, 2.0, platforms=("web",))
    found = recommend(run.report())
    assert [each.target for each in found] == list(TARGETS)
    titles = ["litert int8", "coreml fp16", "tensorrt fp16", "onnx fp32"]
    assert [each.title for each in found] == titles
    assert (
        "checked by this project’s reference executor, not on Apple’s hardware" in found[1].evidence
    )
    assert "checked as a graph on this CPU" in found[2].evidence
    assert found[3].evidence.startswith("2.00 ms natively on this host")


def test_core_ml_goes_before_what_is_faster_here(run):
    run.file("ort", "int8", 5, 1.0, platforms=("android", "ios"))
    run.file("coreml", "fp16", 9, platforms=("ios",))
    found = run.answer(IOS)
    assert found.title == "coreml fp16" and found.why.endswith("may use the Neural Engine.")
    assert found.instead == "ort int8 is 1.8× smaller."
    assert run.answer(ANDROID).title == "ort int8"


def test_without_core_ml_ios_gets_another_file_at_its_own_place(run):
    run.file("ort", "int8", 5, 1.0, platforms=("android", "ios"))
    found = run.answer(IOS)
    assert found.title == "ort int8" and found.path == "bundle/ios/ort/int8/file"
    assert run.answer(ANDROID).path == "bundle/android/ort/int8/file"


def test_latencies_of_a_cpu_do_not_choose_for_a_gpu(run):
    run.file("tensorrt", "fp32", 9_000, 1.0, platforms=("nvidia",))
    run.file("tensorrt", "fp16", 5_000, 2.0, platforms=("nvidia",))
    assert run.answer(NVIDIA).title == "tensorrt fp16"
    gpu = "tensorrt 10.13 on NVIDIA H100"
    run.file("tensorrt", "int8", 7_000, 0.5, platforms=("nvidia",), evaluated_with=gpu)
    run.file("tensorrt", "w8a16", 6_000, 0.7, platforms=("nvidia",), evaluated_with=gpu)
    found = run.answer(NVIDIA)
    assert found.title == "tensorrt int8" and "the engine is built" not in found.evidence


def test_a_report_without_platforms_goes_by_format(run):
    run.file("onnx", "int8", 9, 1.0, platforms=())
    run.file("onnx", "int8", 9, 0.5, platforms=(), variant="symmetric")
    assert [each.title for each in recommend(run.report())] == [
        *("onnx int8", "none", "onnx int8", "onnx int8"),
    ]


# ---- phones and predictions ----


def phone(report, via, p50, **more):
    """A phone that measured the files of these titles."""
    sums = {row.title: row.sha256 for row in report.artifacts}
    files = tuple(
        PhoneFile(title=title, sha256=sums[title] or "", how="cpu, 4 threads", p50_ms=ms)
        for title, ms in p50.items()
    )
    facts = {
        "id": f"{via}-1",
        "device": "Pixel 8",
        "via": via,
        "date": "2026-11-27",
        "files": files,
    }
    return Phone.model_validate(facts | more)


@pytest.fixture
def two(run):
    run.file("onnx", "fp32", 9_000_000, 1.0)
    run.file("onnx", "int8", 2_400_000, 2.0)
    run.file("litert", "int8", 2_400_000, 0.5)
    return run.report()


def test_a_phone_that_measured_beats_this_host(two):
    told = phone(two, "adb", {"onnx fp32": 9.0, "onnx int8": 4.0})
    found = recommend(two.model_copy(update={"phones": (told,)}))
    assert found[ANDROID].title == "onnx int8"
    assert found[ANDROID].why == (
        "The fastest on Pixel 8 of 3 files that keep the accuracy (2 timed)."
    )
    assert found[ANDROID].evidence.startswith("4.00 ms on Pixel 8, 2.40 MB")
    assert found[BROWSER].title == "litert int8"  # every file here says it is for the web, too


def test_a_browser_answers_for_the_browser_only(two):
    told = phone(two, "browser", {"onnx fp32": 9.0, "onnx int8": 4.0})
    found = recommend(two.model_copy(update={"phones": (told,)}))
    assert found[BROWSER].title == "onnx int8" and found[ANDROID].title == "litert int8"


@pytest.mark.parametrize(
    ("p50", "more"),
    [
        ({"onnx int8": 4.0}, {}),  # nothing to compare with
        ({"onnx fp32": 9.0, "onnx int8": 4.0}, {"left": "it left at the first file"}),
    ],
)
def test_a_phone_that_does_not_compare_does_not_choose(two, p50, more):
    found = recommend(two.model_copy(update={"phones": (phone(two, "adb", p50, **more),)}))
    assert found[ANDROID].title == "litert int8"


def test_a_file_that_answers_wrongly_on_a_phone_is_not_named(two):
    told = phone(two, "adb", {"litert int8": 1.0})
    wrong = told.files[0].model_copy(update={"golden_fault": "image 3"})
    told = told.model_copy(update={"files": (wrong,)})
    found = recommend(two.model_copy(update={"phones": (told,)}))
    assert found[ANDROID].title == "onnx fp32" and found[BROWSER].title == "litert int8"


def test_one_way_that_answers_wrongly_leaves_the_others(two):
    told = phone(two, "adb", {"onnx fp32": 9.0, "onnx int8": 1.0})
    wrong = told.files[1].model_copy(update={"golden_fault": "image 3", "how": "GPU"})
    slow = told.files[1].model_copy(update={"p50_ms": 8.0})
    told = told.model_copy(update={"files": (told.files[0], wrong, slow)})
    found = recommend(two.model_copy(update={"phones": (told,)}))[ANDROID]
    assert found.title == "onnx int8" and found.evidence.startswith("8.00 ms on Pixel 8")


def answering(told, title, **facts):
    """The phone with other facts of the file of that title."""
    files = [file.model_copy(update=facts) if file.title == title else file for file in told.files]
    return told.model_copy(update={"files": tuple(files)})


def test_a_file_that_a_phone_finds_less_accurate_is_not_named(two):
    told = phone(two, "adb", {"onnx fp32": 9.0, "litert int8": 1.0, "onnx int8": 4.0})
    there = {"top1": 0.4, "top1_ci95": (0.36, 0.44), "images": 500, "here_top1": 0.9}
    lost = two.model_copy(update={"phones": (answering(told, "litert int8", **there),)})
    assert recommend(lost)[ANDROID].title == "onnx int8"
    only = lost.model_copy(update={"artifacts": two.artifacts[2:]})
    assert recommend(only)[ANDROID].evidence == (
        "litert int8 names 40.00 % of 500 test images rightly on Pixel 8, and 90.00 % of them here."
    )
    assert f"litert int8 (cpu, 4 threads) {recommend(only)[ANDROID].evidence[12:]}" in list(
        on_device.warnings(only)
    )
    assert "onnx int8 is fastest" in on_device.finding(lost).claim
    unsure = there | {"top1": 0.88, "top1_ci95": (0.849, 0.906)}
    chance = two.model_copy(update={"phones": (answering(told, "litert int8", **unsure),)})
    assert recommend(chance)[ANDROID].title == "litert int8"
    assert not list(on_device.warnings(chance))


def test_a_way_that_is_less_accurate_there_leaves_the_others(two):
    told = phone(two, "adb", {"onnx fp32": 9.0, "onnx int8": 1.0})
    there = {"top1": 0.4, "top1_ci95": (0.36, 0.44), "images": 500, "here_top1": 0.9}
    lost = answering(told, "onnx int8", **there, how="GPU").files[1]
    slow = told.files[1].model_copy(update={"p50_ms": 8.0})
    told = told.model_copy(update={"files": (told.files[0], lost, slow)})
    found = recommend(two.model_copy(update={"phones": (told,)}))[ANDROID]
    assert found.title == "onnx int8" and found.evidence.startswith("8.00 ms on Pixel 8")


def test_a_phone_that_could_not_run_the_file_is_told(two):
    told = phone(two, "adb", {"litert int8": 1.0, "onnx fp32": 9.0})
    crashed = {"skipped": "it crashed.", "p50_ms": None}
    found = recommend(
        two.model_copy(update={"phones": (answering(told, "litert int8", **crashed),)})
    )
    assert found[ANDROID].title == "litert int8"
    assert found[ANDROID].evidence.endswith("; Pixel 8 could not run it: it crashed.")
    assert "could not run" not in found[BROWSER].evidence


def with_predictions(report, network="mobilenet_v2", *, titles=("onnx fp32", "onnx int8")):
    work = workloads()[network]
    rows = [
        row.model_copy(update={"predicted": tuple(predict(work, row.precision))})
        for row in report.artifacts
        if row.title in titles
    ]
    return report.model_copy(update={"artifacts": tuple(rows)})


def test_predictions_choose_where_they_compare_all_files(two):
    told = with_predictions(two)
    found = recommend(told)[ANDROID]
    device = [
        {
            each.precision: each.latency_ms
            for row in told.artifacts
            for each in row.predicted
            if (each.runtime, each.unit) == ("onnxruntime", "CPU")
        }
    ][0]
    assert device["int8"] < device["fp32"]  # here int8 was slower
    assert found.title == "onnx int8" and "predicted for RB3 Gen 2 (Proxy)" in found.evidence


def test_predictions_beyond_what_was_fitted_do_not_choose(two):
    told = with_predictions(two)
    rows = [
        row.model_copy(
            update={
                "predicted": tuple(
                    each.model_copy(update={"outside": ("parameters",)}) for each in row.predicted
                )
            }
        )
        for row in told.artifacts
    ]
    found = recommend(told.model_copy(update={"artifacts": tuple(rows)}))[ANDROID]
    assert found.title == "onnx fp32" and "on this host" in found.why


def test_predictions_of_some_files_do_not_choose(two):
    plain = two.artifacts[2]
    some = with_predictions(two)
    both = some.model_copy(update={"artifacts": (*some.artifacts, plain)})
    assert recommend(both)[ANDROID].title == "litert int8"
