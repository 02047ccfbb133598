"""The shape of both pages, section by section and column by column, and that anyone can read them.

What WCAG 2.1 asks of a page that stands still: a language, one h1, headings without gaps, names for
what is drawn, the same numbers as text, and contrast.
"""

import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from benchmarks.predict import predict
from benchmarks.published.fitting import workloads
from pipeline import figures
from pipeline.phones import Phone, PhoneFile
from pipeline.stages import report as pages
from tests.small_run import HASWELL, check, rescued, run_of_seeds, skipped, studied, usual_run

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Element:
    """One element of a page."""

    def __init__(self, tag, attributes, above):
        self.tag, self.attributes, self.text = tag, attributes, ""
        self.above: Any = above
        self.inside: list[Element] = []

    def all(self, *tags):
        """Elements of these tags below this one, in the order of the page."""
        for each in self.inside:
            if each.tag in tags:
                yield each
            yield from each.all(*tags)

    def words(self):
        """Its text and that of what is inside, in no certain order."""
        return " ".join([self.text.strip(), *(each.words() for each in self.inside)]).strip()


class Tree(HTMLParser):
    """Reads a page, and refuses elements that are not closed in order."""

    def __init__(self, page):
        super().__init__()
        self.root: Element = Element("", {}, None)
        self.at = self.root
        self.feed(page)
        assert self.at is self.root, f"<{self.at.tag}> is not closed"

    def handle_starttag(self, tag, attrs):
        found = Element(tag, dict(attrs), self.at)
        self.at.inside.append(found)
        if tag not in VOID:
            self.at = found

    def handle_endtag(self, tag):
        assert tag == self.at.tag, f"</{tag}> closes <{self.at.tag}>"
        self.at = self.at.above

    def handle_data(self, data):
        self.at.text += data


def whole(folder):
    """A report with every part: seeds, an int8 graph that was studied, phones, predictions."""
    run = run_of_seeds(folder)
    run.quantized = studied(24, rescue=rescued(), checks=(check(HASWELL, 0.8, scheme="u8u8"),))
    artifact, found, place = run.artifacts[1]
    spent = {"operators_ms": {"QLinearConv": 1.0, "QGemm": 0.1}}
    cpus = (check(HASWELL, 0.899), *skipped("arm64"))
    run.artifacts[1] = (artifact, found.model_copy(update=spent | {"cpus": cpus}), place)
    report = run.report()
    plain = report.artifacts[0]
    estimates = tuple(predict(workloads()["mobilenet_v2"], "fp32"))
    curve = {"curve_ms": (4.0,) * 8, "curve_s": tuple(range(1, 9))}
    facts = {"title": plain.title, "sha256": plain.sha256, "how": "wasm, 1 thread", "p50_ms": 4.0}
    file = PhoneFile.model_validate(facts | curve)
    phone = {"id": "p", "device": "Pixel 8", "via": "browser", "date": "d", "files": (file,)}
    rows = (plain.model_copy(update={"predicted": estimates}), *report.artifacts[1:])
    return report.model_copy(update={"artifacts": rows, "phones": (Phone.model_validate(phone),)})


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return whole(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def page(report):
    return pages.to_html(report).replace(get_plotlyjs(), "")


@pytest.fixture(scope="module")
def tree(page):
    return Tree(page).root


def below(tree, title):
    """The section of that heading."""
    heading = next(each for each in tree.all("h2") if each.text == title)
    return heading.above


def columns(table):
    return [head.words() for head in next(table.all("thead")).all("th")]


def test_the_page_has_its_parts_in_order(tree):
    outline = [(each.tag, each.text) for each in tree.all("h1", "h2", "h3")]
    expected = [
        *[("h1", "quick"), ("h2", "What to ship"), ("h2", "Networks and files")],
        ("h2", "Accuracy against latency and size"),
        *[("h2", "On phones"), ("h3", "Measured on Pixel 8")],
        *[("h2", "What distillation bought"), ("h3", "Over seeds"), ("h3", "Training")],
        *[("h2", "From float to int8"), ("h3", "Calibration"), ("h3", "Layer by layer")],
        *[("h3", "Layers kept in float"), ("h3", "On other CPUs"), ("h2", "Where the time goes")],
        *[("h2", "What an app must feed the files"), ("h2", "To repeat it"), ("h3", "Files")],
    ]
    known = dict.fromkeys(expected)
    assert [each for each in outline if each in known] == expected
    # What is told of classes and images stands before the contract; it has tests of its own.
    others = [at for at, each in enumerate(outline) if each not in known]
    assert all(
        outline.index(("h2", "Where the time goes")) < at
        and at < outline.index(("h2", "What an app must feed the files"))
        for at in others
    )


def test_the_table_has_its_columns_and_groups(tree):
    table = next(below(tree, "Networks and files").all("table"))
    assert columns(table) == [
        *("Network or file", "Top-1 % 95 % interval", "p50 ms", "p90 ms", "p99 ms", "Size MB"),
        *("Agreement %", "Load ms", "Peak memory MB", "RB3 Gen 2 (Proxy) CPU, predicted ms"),
    ]
    groups = [[row.inside[0].text for row in body.all("tr")] for body in table.all("tbody")]
    assert groups == [
        ["Networks in PyTorch, eager", "teacher", "baseline", "student"],
        ["Exported files", "onnx fp32", "onnx int8", "coreml fp16", "tensorrt int8"],
    ]
    for row in table.all("tr"):
        spans = [int(cell.attributes.get("colspan", 1)) for cell in row.inside]
        assert sum(spans) == 10, row.words()


def test_a_predicted_number_looks_like_none_that_was_measured(tree, report):
    table = next(below(tree, "Networks and files").all("table"))
    row = next(row for row in table.all("tr") if row.inside[0].text == "onnx fp32")
    cell = row.inside[-1]
    found = next(each for each in report.artifacts[0].predicted if each.runtime == "onnxruntime")
    assert next(cell.all("i")).text == f"{found.latency_ms:.1f}"
    low, high = found.interval80
    assert next(cell.all("small")).text == f"{low:.1f}–{high:.1f}"
    assert not [each for each in row.inside[:-1] if list(each.all("i"))]


def test_without_predictions_there_is_no_such_column(tmp_path):
    tree = Tree(pages.to_html(usual_run(tmp_path).report()).replace(get_plotlyjs(), "")).root
    table = next(below(tree, "Networks and files").all("table"))
    assert columns(table)[-1] == "Peak memory MB" and "predicted" not in table.words()


def test_the_gain_stands_beside_its_interval(tree, report):
    table = next(below(tree, "What distillation bought").all("table"))
    rows = [[cell.text for cell in row.inside] for row in table.all("tr")]
    assert columns(table) == ["The same network, 1,200 test images", "Top-1 %", "95 % interval"]
    assert rows[1:] == [
        ["trained alone (baseline)", "89.17", "87.28–90.80"],
        ["distilled (student)", "91.67", "89.97–93.10"],
        ["difference, in points", "+2.50", "+1.58 to +3.41"],  # 30 images one way, none the other
    ]


def test_without_a_baseline_nothing_is_called_bought(tmp_path):
    report = usual_run(tmp_path).report(gain=None)
    titles = [each.text for each in Tree(pages.to_html(report)).root.all("h2", "h3")]
    assert "Training" in titles and "What distillation bought" not in titles


def test_what_to_type_is_there(tree):
    typed = [each.text for each in below(tree, "To repeat it").all("pre")]
    assert typed == [
        "python -m pipeline run pipeline/configs/quick.toml",
        "python -m pipeline report quick",
        "cd runs/quick/bundle && python selftest.py",
        "python -m benchmarks latency quick",
        "python -m benchmarks phone quick\n"
        "python -m benchmarks adb quick --binary onnxruntime_perf_test",
        "python -m pipeline compare quick OTHER",
    ]


def test_a_name_with_a_space_is_quoted_where_it_is_typed(report):
    found = pages.commands(report.model_copy(update={"run": "a b; rm -r"}))
    assert found[1][1] == "python -m pipeline report 'a b; rm -r'"


# ---- for everyone ----


def test_language_viewport_and_one_heading_of_the_first_rank(tree):
    assert next(tree.all("html")).attributes["lang"] == "en"
    metas = {each.attributes.get("name"): each.attributes for each in tree.all("meta")}
    assert metas["viewport"]["content"] == "width=device-width, initial-scale=1"
    assert len(list(tree.all("h1"))) == len(list(tree.all("main"))) == 1
    ranks = [int(each.tag[1]) for each in tree.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert all(b <= a + 1 for a, b in pairwise(ranks))


def test_every_picture_has_a_name_and_a_table_behind_it(tree):
    known = {each.attributes["id"]: each for each in everything(tree) if "id" in each.attributes}
    plots = [
        each for each in everything(tree) if "plot" in each.attributes.get("class", "").split()
    ]
    assert {
        "latency",
        "size",
        "phones",
        "sustained",
        "curves",
        "losses",
        "layers",
        "operators",
        "confusion",
        "reliability",
    } <= {each.attributes["id"] for each in plots}
    for plot in plots:
        assert plot.attributes["role"] == "img" and len(plot.attributes["aria-label"]) > 20
        behind = known[plot.attributes["aria-details"]]
        assert any(behind.all("table")), plot.attributes["id"]


def everything(element):
    for each in element.inside:
        yield each
        yield from everything(each)


def test_ids_are_used_once(tree):
    ids = [each.attributes["id"] for each in everything(tree) if "id" in each.attributes]
    assert len(ids) == len(set(ids))


def test_every_table_names_its_rows_and_columns_and_scrolls_by_keyboard(tree):
    for table in tree.all("table"):
        heads = list(next(table.all("thead")).all("th"))
        assert all(head.attributes["scope"] in ("col", "colgroup") for head in heads)
        assert all(head.words() for head in heads)
        for body in table.all("tbody"):
            for row in body.all("tr"):
                assert row.inside[0].tag == "th" and "scope" in row.inside[0].attributes
        around = table.above.attributes
        assert around["role"] == "region" and around["tabindex"] == "0" and around["aria-label"]


def test_signs_are_hidden_from_readers_aloud(tree):
    key = next(each for each in tree.all("ul") if each.attributes.get("class") == "key")
    for item in key.all("li"):
        (sign,) = item.all("span")
        assert sign.attributes["aria-hidden"] == "true" and item.text.strip()


def luminance(color):
    """WCAG's relative luminance of "#rgb" or "#rrggbb"."""
    digits = color.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_worked_out_as_wcag_does():
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # WebAIM's example


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_and_marks_can_be_told_from_what_is_behind(page, scheme):
    found = re.findall(r":root \{([^}]*)\}", page)
    assert len(found) == 3
    of = dict(re.findall(r"--([\w-]+): (#\w+);", found[scheme]))
    for text in ("ink", "soft"):
        assert contrast(of[text], of["page"]) >= 4.5 and contrast(of[text], of["wash"]) >= 4.5
    assert contrast(of["ink"], of["doubt"]) >= 4.5  # 1.4.3
    assert contrast(of["doubt-edge"], of["page"]) >= 3
    for color in (figures.GREY, figures.BLUE, figures.GREEN, figures.ORANGE):
        assert contrast(color, of["page"]) >= 3  # 1.4.11


# ---- markdown ----


def test_markdown_has_the_golden_shape(tmp_path):
    lines = pages.to_markdown(usual_run(tmp_path).report()).splitlines()
    assert lines[0] == "## quick"
    starts = [
        "- **Android CPU: onnx int8.** `bundle/onnx-int8.bin` The fastest on this host of 2 onnx",
        "- **iOS: none.** No file was verified, so none is recommended. coreml fp16 was exported,",
        "- **NVIDIA: none.** There is no file. tensorrt int8: needs a GPU to build.",
        "- **Browser: onnx int8.** `bundle/onnx-int8.bin` The fastest natively on this host of 2",
        "",
        "**Distillation gained 2.50 points of top-1.** 91.67 % against",
        "",
        "**Against fp32, onnx int8 is 2.3× as fast",
        "",
        "- ⚠ Exported but not run here, so unverified: coreml fp16.",
    ]
    for line, start in zip(lines[2:], starts, strict=False):
        assert line.startswith(start) and bool(line) == bool(start)
    table = [line for line in lines if line.startswith("| ")][:9]
    assert table == [
        "| | Top-1 % | 95 % interval | Agreement % | Difference, mean / max | p50 ms | p90 ms "
        "| p99 ms | Load ms | Peak MB | Size MB |",
        "| :-- | --: | :-: | --: | :-: | --: | --: | --: | --: | --: | --: |",
        "| teacher (PyTorch) | 95.00 | 93.62–96.10 | 96.67 | – | 40.0 | 44.0 | 52.0 | 12.0 | 61.0 "
        "| 0.008 |",
        "| baseline (PyTorch) | 89.17 | 87.28–90.80 | 97.50 | – | 9.00 | 9.90 | 11.7 | 12.0 | 61.0 "
        "| 0.008 |",
        "| student (PyTorch) | 91.67 | 89.97–93.10 | 100.00 | – | 9.00 | 9.90 | 11.7 | 12.0 | 61.0 "
        "| 0.008 |",
        "| onnx fp32 | 91.67 | 89.97–93.10 | 100.00 | 0 / 0 | 3.00 | 3.30 | 3.90 | 12.0 | 61.0 "
        "| 8.90 |",
        table[6],
        "| coreml fp16 | – | – | – | – | – | – | – | – | – | 4.50 |",
        "| tensorrt int8 | – | – | – | – | – | – | – | – | – | – |",
    ]
    assert table[6].startswith("| onnx int8 | ") and re.search(
        r"\| 99\.50 \| 0\.\d+ / \S+ \| 1\.30 \|", table[6]
    )
    folded = [line for line in lines if line.startswith("<details>")]
    assert [re.sub("<.*?>", "", line) for line in folded] == [
        *("What to know of the files", "Training", "From float to int8"),
        *("By class, and what confidence is worth", "To repeat it"),
    ]
    assert lines.count("</details>") == len(folded)
    assert "- coreml fp16: needs macOS" in lines
    assert "    python -m pipeline run pipeline/configs/quick.toml" in lines
    assert "    cd runs/quick/bundle && python selftest.py" in lines
    assert lines[-1] == "</details>"
