"""Files that are written whole or not at all."""

import pytest

from pipeline.fit import pages
from pipeline.fit.budget import Budget
from pipeline.fit.outcome import Fit
from pipeline.whole import write_whole

UNWRITABLE = "half of it \ud800"
"""No UTF-8: the write fails after the file aside has been made."""


def test_a_text_takes_the_place_of_another_and_leaves_nothing_beside_it(tmp_path):
    page = tmp_path / "page.md"
    write_whole(page, "before")
    write_whole(page, "äfter\n")
    assert page.read_bytes() == "äfter\n".encode()
    assert list(tmp_path.iterdir()) == [page]


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    write_whole(page, "before")
    with pytest.raises(UnicodeEncodeError):
        write_whole(page, UNWRITABLE)
    assert page.read_text() == "before" and list(tmp_path.iterdir()) == [page]


def test_a_page_of_a_fit_that_cannot_be_put_in_its_place_leaves_nothing_beside_it(tmp_path):
    found = Fit(
        run="x-fit",
        command="fit",
        date="today",
        data="digits",
        phone="a phone",
        budget=Budget(bytes=1),
        space=0,
        rows=(),
        refused={},
        epochs=1,
        seconds={},
    )
    (tmp_path / "fit.md").mkdir()
    with pytest.raises(OSError):
        pages.write(found, tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {"fit.html", "fit.md"}
