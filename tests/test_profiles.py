"""Profiles: what does not fit together is refused, and what this machine does not have."""

import sys

import pytest

from benchmarks import profiles
from benchmarks.profiles import Profile
from pipeline.errors import CannotRunHereError, ConfigError


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"threads": 2, "affinity": (0,)}, "threads is 2, and affinity names 1 CPU"),
        ({"threads": 3, "affinity": (0, 1, 1)}, "threads is 3, and affinity names 2 CPUs"),
        ({"affinity": ()}, "affinity"),
        ({"min_seconds": 3, "max_seconds": 2}, "max_seconds is less than min_seconds"),
    ],
)
def test_what_does_not_fit_together(keys, words):
    with pytest.raises(ValueError, match=words):
        Profile.model_validate(keys)


def test_threads_fit_on_as_many_cpus():
    assert Profile(threads=2, affinity=(0, 1)).affinity == (0, 1)
    assert Profile(threads=0, affinity=(0,)).threads == 0


def test_what_only_linux_has_is_refused_elsewhere(monkeypatch):
    monkeypatch.setattr(profiles, "cpus", set)
    monkeypatch.setattr(sys, "platform", "darwin")
    for keys, name in (({"affinity": (0,)}, "affinity"), ({"memory_limit_mb": 9}, "memory_limit")):
        with pytest.raises(CannotRunHereError, match=f"`x` sets `{name}.*needs Linux") as caught:
            Profile.model_validate(keys).check("x")
        assert "leave out" in caught.value.remedy
    Profile().check("x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[good]\nthreads = 1\n[mine]\nthread = 1", r"mine\.thread: unknown key.*`threads`"),
        ("[mine]\nbatch = 0", r"mine\.batch: "),
        ("mine = 3", "mine: "),
        ("[mine", r"profiles\.toml: "),
    ],
)
def test_a_wrong_key_is_named_with_its_table(tmp_path, monkeypatch, text, words):
    (tmp_path / "profiles.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(profiles, "FILE", tmp_path / "profiles.toml")
    with pytest.raises(ConfigError, match=words):
        profiles.profiles.__wrapped__()
