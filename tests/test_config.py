"""Settings files: what is refused, and how it is said."""

from pathlib import Path

import pytest

from pipeline.config import read
from pipeline.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[1] / "pipeline" / "configs").glob("*.toml"))
MINIMAL = 'name = "x"\n[data]\nsource = "digits"\n'


def config(tmp_path, text, *overrides):
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return read(path, overrides)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_settings_are_valid_and_named_after_their_file(path):
    assert read(path).name == path.stem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("distil = 1\n" + MINIMAL, r"distil: unknown key; did you mean `distill`\?"),
        (MINIMAL + "[distill]\ntemprature = 2", "distill.temprature.*did you mean `temperature`"),
        (MINIMAL + "[teach.recipe]\nepoch = 2", "teach.recipe.epoch.*did you mean `epochs`"),
        (MINIMAL + "[distill]\ntemperature = 0", "distill.temperature.*greater than 0, not 0"),
        (MINIMAL + '[teach.recipe]\nepochs = "many"', "teach.recipe.epochs.*integer.*'many'"),
        (MINIMAL + "[distill]\nxyz = 1", "distill.xyz: unknown key; known keys: temperature"),
        (MINIMAL + "[export]\nformat = []", "export.format: unknown key or format"),
        (MINIMAL + '[export]\nformats = ["onnx", "tflight"]', "no format is called `tflight`"),
        (MINIMAL + '[export]\nformats = ["coreml"]', "`onnx` must be among the formats"),
        (MINIMAL + "[export]\nformats = 3", "export.formats: .*tuple"),
        ("export = 3\n" + MINIMAL, "export: .*dictionary"),
        (MINIMAL + '[export]\nformats = "coreml"', "export.formats: .*tuple"),
        (MINIMAL + '[export]\nformats = ["onnx", "onnx"]', "names a format twice"),
        (MINIMAL + "[export]\nonnx = 3", "export.onnx: .*dictionary"),
        (MINIMAL + "[export.onnx]\nopsett = 3", "export.onnx.opsett.*did you mean `opset`"),
        (MINIMAL + "[export.onnx]\nopset = 3", "export.onnx.opset.*greater than or equal to 18"),
        (MINIMAL + '[measure]\nprofile = "phone"', "no latency profile is called `phone`"),
        (MINIMAL + '[student]\narch = "mobilenet_v5"', "student.arch.*'mobilenet_v2'"),
        ("seeds = [1, 2, 1]\n" + MINIMAL, "seeds: names a seed twice: 1, not"),
        ("seeds = [0, -1]\n" + MINIMAL, "seeds.1: .*greater than or equal to 0, not -1"),
        ("seeds = 3\n" + MINIMAL, "seeds: .*tuple, not 3"),
        ('name = "a/b"\n[data]\nsource = "digits"', "name: may hold letters"),
        ('[data]\nsource = "digits"', "name: field required"),
        ("name = ", "not valid TOML"),
    ],
)
def test_wrong_settings_are_named(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        config(tmp_path, text)


def test_every_fault_is_listed(tmp_path):
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, MINIMAL + "[distill]\ntemperature = -1\nhard_weight = 2\nfoo = 3")
    assert all(key in caught.value.message for key in ("temperature", "hard_weight", "foo"))


def test_a_method_brings_its_own_keys(tmp_path):
    found = config(tmp_path, MINIMAL + '[distill]\nmethod = "dkd"\nbeta = 2\nviews = 3').distill
    assert found.loss.model_dump() == {
        "temperature": 4.0,
        "hard_weight": 1.0,
        "alpha": 1.0,
        "beta": 2.0,
    }
    wrong = {
        'method = "kdd"': "distill.method: no method is called `kdd`; there are: dist, dkd",
        "beta = 2": "distill.beta: unknown key",
        'method = "dkd"\nbetta = 2': "distill.betta: unknown key; did you mean `beta`",
        "vews = 2": "distill.vews: unknown key; did you mean `views`",
        'method = "function_matching"\nhard_weight = 1': "distill.hard_weight: unknown key",
    }
    for text, message in wrong.items():
        with pytest.raises(ConfigError, match=message):
            config(tmp_path, MINIMAL + f"[distill]\n{text}")


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match="there is no file") as caught:
        read(tmp_path / "none.toml")
    assert "quick.toml" in caught.value.remedy
    (tmp_path / "latin.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match="cannot read"):
        read(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("override", "value"),
    [("distill.temperature=2", 2.0), ("distill.temperature = 2.5", 2.5)],
)
def test_set_overrides_any_key(tmp_path, override, value):
    assert config(tmp_path, MINIMAL, override).distill.loss.model_dump()["temperature"] == value


def test_set_takes_strings_lists_tables_and_switches(tmp_path):
    found = config(
        tmp_path,
        MINIMAL,
        "name=other",
        'export.formats=["onnx"]',
        "quantize.enabled=false",
        "student.recipe={epochs = 3}",
        "export.onnx.opset=20",
        "data.folder=some folder/with spaces",
    )
    assert found.name == "other" and found.export.formats == ("onnx",)
    assert not found.quantize.enabled and found.student.recipe.epochs == 3
    assert found.export.settings_of("onnx").model_dump()["opset"] == 20
    assert found.data.folder == Path("some folder/with spaces")


def test_the_first_of_several_seeds_is_shipped_and_none_means_the_runs_own(tmp_path):
    assert config(tmp_path, MINIMAL, "seed=5").student_seeds == (5,)
    found = config(tmp_path, MINIMAL, "seed=5", "seeds=[3, 1]")
    assert found.student_seeds == (3, 1) and found.seed == 5


@pytest.mark.parametrize("override", ["distill.temperature", "=3", "name.x=3", "a..b=1"])
def test_a_set_that_is_none(tmp_path, override):
    with pytest.raises(ConfigError, match="--set"):
        config(tmp_path, MINIMAL, override)
