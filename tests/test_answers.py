"""What pages say of single classes, of confidence and of images; hostile labels; many classes."""

import json
import re

import numpy as np
import pytest
from plotly.offline import get_plotlyjs
from rich.console import Console

from benchmarks.stats import wilson
from pipeline import answer_figures, answers, summary, tables, trust
from pipeline.bundle import card
from pipeline.stages import report as pages
from tests.small_run import SmallRun, usual_run
from tests.test_report_shape import contrast

EVIL = ('<b>&"x"</b>|*_', "[red]boot[/red]", "%{y} <script>alert(1)</script>")
MEGABYTES = 6_000_000


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return usual_run(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def report(run):
    return run.report()


def plain(page):
    """A page's text without plotly's code, tags and hard spaces."""
    text = re.sub(r"<[^>]+>", "", page.replace(get_plotlyjs(), ""))
    return " ".join(text.replace("\u00a0", " ").split())


# ---- by class ----


def test_the_row_of_a_class_has_its_shares_and_differences(run, report):
    row = next(row for row in answers.class_rows(report) if row.label == "boot")
    named = {name: np.load(run.folder / f"{name}.npy").argmax(1) for name in "ab"}
    of = run.truth == 1
    student, int8 = named["a"], named["b"]
    assert row.n == of.sum() and row.student == pytest.approx((student[of] == 1).mean())
    assert row.precision == pytest.approx(of[student == 1].mean())
    assert row.int8_precision == pytest.approx(of[int8 == 1].mean())
    assert row.change == pytest.approx((int8[of] == 1).mean() - (student[of] == 1).mean())
    assert report.class_gains[1] is not None and row.gain == pytest.approx(
        report.class_gains[1].difference
    )
    assert row.gain_ci95 == report.class_gains[1].ci95


def test_columns_without_anything_to_say_are_left_out(tmp_path, report):
    heads = [head for head, _ in answers.class_columns(answers.class_rows(report))]
    assert len(heads) == 7
    alone = SmallRun(tmp_path)
    alone.add_model("student", 100, 9.0)
    rows = answers.class_rows(alone.report())
    heads = [head for head, _ in answers.class_columns(rows)]
    assert heads == ["Student %", "Student’s precision %"]
    assert answers.class_columns([]) == []


def turned(run, role, truth, named, n):
    """Let the network of that role name `n` more images of one class as another."""
    at = [checkpoint.role for checkpoint, _ in run.models].index(role)
    found = run.models[at][1]
    logits = np.load(run.folder / found.accuracy.predictions)
    right = np.flatnonzero((run.truth == truth) & (logits.argmax(1) == truth))[:n]
    logits[right] = 0
    logits[right, named] = 5
    run.models[at] = (run.models[at][0], run.measured(role, logits, 9.0))


def test_classes_that_distillation_helps_or_harms_are_named(tmp_path):
    run = SmallRun(tmp_path)
    run.add_model("baseline", 0, 9.0)
    run.add_model("student", 0, 9.0)
    line = answers.class_lines(run.report())
    assert line == [
        "In no class is the difference between student and baseline certain (McNemar’s exact test "
        "in each, Holm’s correction for 3)."
    ]
    turned(run, "baseline", 0, 1, 40)
    turned(run, "student", 2, 1, 20)
    images = np.bincount(run.truth)
    assert answers.class_lines(run.report()) == [
        f"By class, distillation gains in shirt (+{4000 / images[0]:.2f} points) and loses in bag "
        f"(−{2000 / images[2]:.2f} points); in the other class the difference may be chance "
        "(McNemar’s exact test in each, Holm’s correction for 3)."
    ]


def test_many_classes_are_not_all_named(tmp_path):
    run = SmallRun(tmp_path, n=1600, labels=tuple(f"kind {i}" for i in range(8)))
    run.add_model("baseline", 1600, 9.0)
    run.add_model("student", 0, 9.0)
    line = answers.class_lines(run.report())[0]
    assert line.count("(+100.00 points)") == answers.NAMED and " and 3 more (McNemar" in line


def test_what_int8_changed_is_counted(report):
    assert re.fullmatch(
        r"onnx int8 names another class than the student on 6 of 1,200 test images \(0\.50 %\): on "
        r"(\d) of them the student is right, on (\d) onnx int8 is, on (\d) neither\.",
        answers.change_line(report),
    )
    counts = [int(n) for n in re.findall(r"\bon (\d)", answers.change_line(report))]
    assert counts[0] == 6 and sum(counts[1:]) == 6


def test_an_int8_file_that_changes_nothing_says_so(tmp_path):
    run = SmallRun(tmp_path)
    student = run.add_model("student", 100, 9.0)
    for precision in ("fp32", "int8"):
        run.add_artifact("onnx", precision, 10, run.measured(precision, student, 3.0, student))
    report = run.report()
    assert answers.change_line(report) == (
        "onnx int8 names the student’s class on all 1,200 test images."
    )
    assert answers.pictures_line(report) == (
        "Student and onnx int8 name the same class on every test image."
    )
    assert "Where they disagree" in pages.to_html(report)


def test_the_noise_of_a_class_is_never_nothing(tmp_path):
    run = SmallRun(tmp_path)
    run.add_model("student", 0, 9.0)
    found = answers.class_noise(run.report())
    assert found is not None and found[0] == sorted(np.bincount(run.truth))[1]
    low, high = wilson(found[0], found[0])
    assert found[1] == pytest.approx((high - low) / 2) and found[1] > 0.004
    assert "±0.0 points" not in pages.to_html(run.report())


INT8 = ("What int8 loses", "int8 names otherwise", "int8, images", "int8 %")


def test_without_int8_the_page_does_not_speak_of_it(tmp_path):
    run = SmallRun(tmp_path)
    run.add_model("teacher", 60, 40.0)
    run.add_model("baseline", 130, 9.0)
    student = run.add_model("student", 100, 9.0)
    run.add_artifact("onnx", "fp32", 100, run.measured("a", student, 3.0, student))
    page = plain(pages.to_html(run.report()))
    assert [each for each in INT8 if each in page] == []
    assert "Those that the student is surest of come first." in page
    assert "Below a difference stands its own" in page  # student and baseline
    alone = SmallRun(tmp_path / "alone")
    alone.add_model("student", 100, 9.0)
    assert "Below a difference" not in plain(pages.to_html(alone.report()))


def test_with_int8_the_page_says_what_comes_first(report):
    page = plain(pages.to_html(report))
    assert [each for each in INT8 if each in page] == list(INT8)


def test_int8_without_a_float_file_beside_it_is_spoken_of(tmp_path):
    run = SmallRun(tmp_path)
    run.add_model("teacher", 60, 40.0)
    student = run.add_model("student", 100, 9.0)
    int8 = run.logits(0, base=student, flips=60)
    run.add_artifact("litert", "int8", 100, run.measured("a", int8, 3.0, student))
    report = run.report()
    assert len(report.class_changes) == 3 and any(row.change for row in answers.class_rows(report))
    assert answers.change_line(report).startswith(
        "litert int8 names another class than the student on 60"
    )
    assert report.disagreements is not None and report.disagreements.int8 == "litert int8"
    assert set(answers.by_name(report)) == {"teacher", "student", "int8"}


def test_a_file_with_a_float_one_beside_it_goes_first(tmp_path):
    run = SmallRun(tmp_path)
    student = run.add_model("student", 100, 9.0)
    for name, precision in (("litert", "int8"), ("onnx", "fp32"), ("onnx", "int8")):
        found = run.measured(f"{name}-{precision}", student, 3.0, student)
        run.add_artifact(name, precision, 100, found)
    assert answers.by_name(run.report())["int8"].title == "onnx int8"


def test_a_teacher_that_was_not_measured_is_not_said_to_disagree(tmp_path):
    run = usual_run(tmp_path)
    teacher, found = run.models[0]
    run.models[0] = (teacher, found.model_copy(update={"accuracy": None}))
    assert answers.pictures_line(run.report()) == (
        "Student and onnx int8 do not all name the same class on 6 test images."
    )


# ---- confusions ----


def test_the_most_frequent_confusions_are_told(run, report):
    student = np.load(run.folder / "student.npy").argmax(1)
    counts = {
        (report.labels[t], report.labels[n]): int(((run.truth == t) & (student == n)).sum())
        for t in range(3)
        for n in range(3)
        if t != n
    }
    rows = answers.confusion_rows(report)
    assert [int(row[2]) for row in rows] == sorted((n for n in counts.values() if n), reverse=True)
    assert all(counts[row[0], row[1]] == int(row[2]) for row in rows)
    line = answers.confusion_line(report)
    assert line.startswith(f"Of {rows[0][0]} the student names {rows[0][2]} as {rows[0][1]} (")
    assert line.endswith("below are 100.00 % of its 100 wrong answers.")


def test_a_faultless_student_has_no_confusion(tmp_path):
    run = SmallRun(tmp_path)
    run.add_model("student", 0, 9.0)
    report = run.report()
    assert answers.confusion_line(report) == "The student names no test image wrongly."
    assert answers.confusion_rows(report) == []
    assert answer_figures.confusion(report) is not None


def heat(report):
    figure = answer_figures.confusion(report)
    assert figure is not None
    return json.loads(str(figure.to_json()))


def test_the_matrix_is_drawn_in_shares_of_each_class(run, report):
    found = heat(report)
    counts = report.model("student").confusions.counts
    right, wrong = (trace["z"] for trace in found["data"])
    for t, row in enumerate(counts):
        for n, images in enumerate(row):
            here, there = (right, wrong) if t == n else (wrong, right)
            assert there[t][n] is None
            assert here[t][n] == (pytest.approx(images / sum(row)) if images else None)
    assert found["data"][0]["text"][0][0] == str(counts[0][0])
    assert found["layout"]["yaxis"]["ticktext"] == list(report.labels)


def mixed(over, page, opacity):
    """A colour that is laid on the page."""
    parts = [int(page[i : i + 2], 16) for i in (1, 3, 5)]
    laid = [
        opacity * int(a) + (1 - opacity) * b for a, b in zip(over.split(","), parts, strict=True)
    ]
    return "#" + "".join(f"{round(each):02x}" for each in laid)


def test_numbers_are_read_on_the_fullest_cells(report):
    page = pages.to_html(report)
    for ink, ground in zip(
        *(re.findall(rf"--{name}: (#\w{{6}});", page) for name in ("ink", "page")), strict=True
    ):
        for color in answer_figures.HEAT.values():
            assert contrast(ink, mixed(color, ground, answer_figures.FULL)) >= 4.5


# ---- confidence ----


def test_confidence_is_told_in_words(tmp_path):
    run = SmallRun(tmp_path)
    run.add_model("student", 300, 9.0)  # sure of every image, wrong on a quarter
    report = run.report()
    found = report.models[0].confidence
    assert found is not None
    line = trust.confidence_lines(report)[0]
    assert line.startswith(f"The student is over-confident by {100 * found.over:.2f} points (95 %")
    assert f"{100 * found.mean:.2f} %, and it is right on 75.00 %." in line
    assert f"(ECE) is {100 * found.ece:.2f} %" in line and "chance may" not in line
    modest = np.load(run.folder / "student.npy") / 10
    run.models[0] = (run.models[0][0], run.measured("student", modest, 9.0))
    assert "The student is under-confident by" in trust.confidence_lines(run.report())[0]


def test_a_calibrated_network_is_not_blamed(tmp_path):
    run = SmallRun(tmp_path)
    rng = np.random.default_rng(8)
    logits = rng.normal(0, 1.5, (run.n, 3))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    run.truth = np.array([rng.choice(3, p=row) for row in shares])
    np.save(run.folder / "labels.npy", run.truth)
    run.add_model("student", 0, 9.0)
    found = run.measured("student", logits.astype(np.float32), 9.0)
    run.models[0] = (run.models[0][0], found)
    line = trust.confidence_lines(run.report())[0]
    assert "is not certainly over- or under-confident" in line and line.endswith(
        "chance may explain it."
    )


def test_every_bin_has_its_row_and_its_point(report):
    student, int8 = (trust.assessed(report)[name][1] for name in trust.BINNED)
    rows = trust.bin_rows(report)
    for at, found in enumerate((student, int8)):
        assert sum(int(cells[at][0].replace(",", "")) for _, cells in rows) == found.n
    figure = answer_figures.reliability(report)
    assert figure is not None
    drawn = {
        trace["name"]: trace
        for trace in json.loads(str(figure.to_json()))["data"]
        if "name" in trace
    }
    assert drawn["student"]["y"] == pytest.approx([100 * each.top1 for each in student.bins])
    assert drawn["onnx int8"]["x"] == pytest.approx([100 * each.confidence for each in int8.bins])
    assert all(end >= 0 for end in drawn["student"]["error_y"]["arrayminus"])
    titles = [title for title, _ in trust.confidence_rows(report)]
    assert titles == ["teacher", "baseline", "student", "onnx int8"]


# ---- the pages ----


def test_both_pages_have_the_sentences(report):
    page, text = plain(pages.to_html(report)), pages.to_markdown(report).replace("\\", "")
    for line in trust.lines(report):
        assert line in page.replace("&#39;", "'") and f"- {line}" in text.splitlines()
    assert len(trust.lines(report)) == 5
    assert answers.confusion_line(report) in page and answers.pictures_line(report) in page


def test_the_pictures_say_who_names_what(report):
    page = pages.to_html(report)
    grid = page.split('<ul class="pictures">')[1].split("</ul>")[0]
    pictures = grid.split("<li>")[1:]
    assert len(pictures) == 12
    for each, html in zip(report.disagreements.shown, pictures, strict=True):
        truth = report.labels[each.truth]
        assert f'alt="Test image {each.index}: {truth}"' in html and 'class="small"' in html
        assert f"<strong>{truth}</strong>" in html
        for who, said in each.said.items():
            told = re.search(rf"<p>{who}: (.*?), .*?</p>", html)
            assert told and told[1] == report.labels[said.named]
            assert ("✓" in told[0]) == (said.named == each.truth)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return usual_run(tmp_path_factory.mktemp("hostile"), labels=EVIL).report()


def test_labels_with_markup_stay_text_on_the_page(hostile):
    page = pages.to_html(hostile).replace(get_plotlyjs(), "")
    assert not re.search(r"<b>|<script>alert|[^;]</b>", page)
    assert page.count("</script>") == 3  # plotly.js and our two, each ended once
    section = page.split("<h2>By class</h2>")[1].split("<h2>What an app must")[0]
    escaped = "&lt;b&gt;&amp;&#34;x&#34;&lt;/b&gt;|*_"
    assert section.count(escaped) > 5
    assert re.search(rf'alt="Test image \d+: {re.escape(escaped)}"', section)


def test_labels_with_markup_stay_text_in_the_figure(hostile):
    ticks = heat(hostile)["layout"]["xaxis"]["ticktext"]
    # plotly undoes these; of quotes it would show the entity
    assert ticks[0] == '&lt;b&gt;&amp;"x"&lt;/b&gt;|*_' and ticks[2] == "&#37;{y} …/script&gt;"
    hovers = [trace["customdata"] for trace in heat(hostile)["data"]]
    assert hovers[0][0][0].startswith('<b>&lt;b&gt;&amp;"x"&lt;/b&gt;|*_</b><br>named rightly: ')
    assert "named &#37;{y} &lt;script&gt;" in hovers[1][1][2] and not hovers[1][0][0]


def test_labels_with_markup_stay_text_in_markdown(tmp_path):
    run = SmallRun(tmp_path, labels=EVIL)
    run.add_model("baseline", 0, 9.0)
    run.add_model("student", 0, 9.0)
    for truth in range(3):
        turned(run, "baseline", truth, (truth + 1) % 3, 40)
    line = next(
        line
        for line in pages.to_markdown(run.report()).splitlines()
        if "distillation gains" in line
    )
    assert r'\<b\>&amp;"x"\</b\>\|\*\_' in line and r"\[red\]boot\[/red\]" in line
    console = Console(width=400, color_system=None)
    with console.capture() as shown:
        console.print(tables.show(run.report()))
    text = shown.get()
    assert "[red]boot[/red] (+" in text and '<b>&"x"</b>|*_ (+' in text


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """A thousand long names, fifty images of each, and student and int8 in earnest disagreement."""
    labels = tuple(f"{at:04d} {EVIL[at % 3]}, or some such thing, in Latin" for at in range(1000))
    run = SmallRun(tmp_path_factory.mktemp("thousand"), n=20_000, labels=labels)
    run.add_model("teacher", 2000, 40.0)
    run.add_model("baseline", 9000, 9.0)
    student = run.add_model("student", 6000, 9.0)
    run.add_artifact("onnx", "fp32", 8_900_000, run.measured("a", student, 3.0, student))
    int8 = run.logits(0, base=student, flips=2000)
    run.add_artifact("onnx", "int8", 2_400_000, run.measured("b", int8, 1.3, student))
    return run.report()


def test_a_page_of_a_thousand_classes_stays_below_six_megabytes(thousand):
    page = pages.to_html(thousand)
    assert len(page.encode()) < MEGABYTES
    assert "The other 980 classes" in page
    table = page.split("<h2>By class</h2>")[1].split("<h3>")[0]
    assert table.count("<tr>") == 1002 and not re.search("<script>|<b>", table)


def test_a_thousand_classes_have_no_matrix_but_their_confusions(thousand):
    assert answer_figures.confusion(thousand) is None and answers.matrices(thousand) == []
    student = thousand.model("student")
    assert student.confusions.counts is None and student.confusions.wrong == 6000
    rows = answers.confusion_rows(thousand)
    assert len(rows) == answers.CONFUSIONS
    assert {row[4] for row in rows} <= {"–", *(str(n) for n in range(1, 100))}
    page = pages.to_html(thousand)
    assert 'id="confusion"' not in page and "The whole matrix" not in page
    assert 'aria-label="The most frequent confusions"' in page


def test_a_report_of_a_thousand_classes_is_read_again(thousand, tmp_path):
    text = thousand.to_json()
    assert len(text) < 3_000_000
    (tmp_path / "report.json").write_text(text)
    assert summary.read(tmp_path) == thousand
    assert len(pages.to_markdown(thousand)) < 20_000
    assert len(card.classes(thousand)) == 1000


@pytest.mark.parametrize(("classes", "whole"), [(30, True), (31, False)])
def test_up_to_thirty_classes_the_matrix_is_shown(tmp_path, classes, whole):
    labels = tuple(f"kind {at}" for at in range(classes))
    report = usual_run(tmp_path, labels=labels).report()
    page = pages.to_html(report)
    assert ('id="confusion"' in page) == whole
    assert page.count("<summary>The whole matrix") == 2 * whole
    if whole:
        assert "texttemplate" not in heat(report)["data"][0]  # no room for numbers
