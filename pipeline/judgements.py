"""The gate's judgements as CI reads them: JUnit XML, and Markdown for GitHub."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from pipeline.gate import Judgement
from pipeline.templating import escape_markdown

SUMMARY = "GITHUB_STEP_SUMMARY"
"""Environment variable: the Markdown file that GitHub shows beside a job."""


def junit(found: Sequence[Judgement], run: str) -> bytes:
    """JUnit XML, a suite a file and a case a rule, as test reporters of CI services read it."""
    whole = ElementTree.Element("testsuites", name=f"gate {run}")
    for file in dict.fromkeys(each.file for each in found):
        cases = [each for each in found if each.file == file]
        suite = ElementTree.SubElement(
            whole,
            "testsuite",
            name=file,
            tests=str(len(cases)),
            failures=str(sum(not each.passes for each in cases)),
            skipped=str(sum(each.passes and each.state != "passed" for each in cases)),
            errors="0",
        )
        for each in cases:
            case = ElementTree.SubElement(suite, "testcase", classname=file, name=each.rule)
            if not each.passes:
                failure = ElementTree.SubElement(case, "failure", message=_xml(each.told))
                failure.text = _xml(each.line)
            elif each.state != "passed":
                ElementTree.SubElement(case, "skipped", message=_xml(each.told))
            else:
                ElementTree.SubElement(case, "system-out").text = _xml(each.told)
    ElementTree.indent(whole)
    return ElementTree.tostring(whole, encoding="utf-8", xml_declaration=True) + b"\n"


def _xml(text: str) -> str:
    """Without the control characters that XML 1.0 knows none of: a tool's message may have them."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", text)


def markdown(found: Sequence[Judgement], run: str, against: str) -> str:
    """A table for a pull request or GitHub's summary of a step."""
    verdict = "passes" if all(each.passes for each in found) else "fails"
    lines = [f"### {escape_markdown(run)} {verdict} against {escape_markdown(against)}", ""]
    lines += ["| File | Rule | | |", "| :-- | :-- | :-- | :-- |"]
    lines += [
        f"| {escape_markdown(each.file)} | {each.rule} | {'✓' if each.passes else '✗'} "
        f"{each.state} | {escape_markdown(each.told)} |"
        for each in found
    ]
    return "\n".join(lines) + "\n"


def summarize(text: str) -> None:
    """Append `text` to GitHub's summary of the step, where this is one."""
    if path := os.environ.get(SUMMARY):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text)
