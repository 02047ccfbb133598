"""What goes into Markdown stays the text that it is."""

import pytest

from pipeline.stages import report as pages
from pipeline.templating import as_code, escape_markdown
from tests.small_run import SmallRun


def test_code_cannot_be_broken():
    assert as_code("a`b\nc") == "`` a`b c ``"
    assert as_code("plain") == "`plain`"


def test_markup_is_escaped_on_one_line():
    assert escape_markdown("a|b <b>\n`x` *y* _z_ [l] ~s~ \\") == (
        r"a\|b \<b\> \`x\` \*y\* \_z\_ \[l\] \~s\~ \\"
    )
    assert escape_markdown("# no heading & no &copy;") == r"\# no heading &amp; no &amp;copy;"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("@octocat", "@&#8203;octocat"),
        ("fixes #12", r"fixes \#&#8203;12"),
        ("owner/repository#7", r"owner/repository\#&#8203;7"),
        ("from $5 to $9", "from <span>$</span>5 to <span>$</span>9"),
        ("a @ b, # of c", r"a @ b, \# of c"),
    ],
)
def test_names_do_not_ping_link_or_become_a_formula(text, escaped):
    assert escape_markdown(text) == escaped


def test_paths_and_digests_of_the_report_are_to_the_letter(tmp_path):
    run = SmallRun(tmp_path)
    run.dataset = run.dataset.model_copy(update={"digest": "d_1" * 20})
    student = run.add_model("student", 100, 9.0)
    found = run.measured("a", student, 0.5, student, latency=None)
    run.add_artifact("tensorrt_rtx", "int8", 10, found, platforms=("nvidia",))
    artifact, measured, _ = run.artifacts[0]
    run.artifacts[0] = (artifact, measured, "nvidia/tensorrt_rtx/int8/model_b.engine")
    lines = pages.to_markdown(run.report()).splitlines()
    path = "`bundle/nvidia/tensorrt_rtx/int8/model_b.engine`"
    assert any(line.startswith("- **NVIDIA: ") and path in line for line in lines)
    assert f"| {path} | `{'ab' * 32}` |" in lines
    assert f"| Data digest | `{'d_1' * 20}` |" in lines
