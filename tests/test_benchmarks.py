"""The experiments at the command line, on tiny sets: what they write, and what they refuse."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pytest import approx

from benchmarks import publishing
from benchmarks.experiments import commands, distillation, pages, training
from pipeline import references
from pipeline.errors import ConfigError, StoreError
from pipeline.machine import cpu_name
from tests.pictures import make_set

ROOT = Path(__file__).parents[1]
RECIPE = "recipe = { epochs = 1, batch_size = 16, learning_rate = 0.05 }"
TINY = """
[[entrant]]
name = "kd"
[[entrant]]
name = "matching"
set = ["distill.method=function_matching", "distill.views=1", "student.recipe.augment.mixup=1"]
[[entrant]]
name = "wild"
set = ["student.recipe.learning_rate=1e9"]
"""


def benchmarks(*words):
    line = [sys.executable, "-m", "benchmarks", *map(str, words)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


def refused(done, *words):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    told = " ".join(done.stderr.split())
    assert not [word for word in words if word not in told], told


def rows_of(page, title):
    """The rows below `title` by their first cell, each a dict by header."""
    part = page.split(f"**{title}**\n\n")[1].split("\n\n")[0]
    lines = [[cell.strip() for cell in x.strip("|").split("|")] for x in part.splitlines()]
    return {cells[0]: dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]}


def cells(table):
    """The rows of a rich table."""
    return list(zip(*(column.cells for column in table.columns), strict=True))


def number(cell):
    """The first number in a cell."""
    return float(re.findall(r"[-+]?[\d,.]+", cell)[0].replace(",", ""))


def states_its_origin(page, command):
    assert f"- command: `python -m benchmarks {shlex.join(map(str, command))}`" in page
    assert re.search(r"^- commit: ([0-9a-f]{10}|unknown)", page, re.MULTILINE)
    assert re.search(r"^- date: \d{4}-\d\d-\d\d \d\d:\d\d UTC$", page, re.MULTILINE)
    assert f"- host: {cpu_name()}" in page and re.search(r"torch \d", page)


@pytest.fixture(scope="module")
def speed(tmp_path_factory):
    """What `training` writes of tiny networks: page and raw numbers."""
    out = tmp_path_factory.mktemp("speed") / "a page.md"
    networks = ["--teacher", "resnet8_cifar", "--teacher-width", "0.25", "--student-width", "0.25"]
    size = ["--synthetic", "--images", "40", "--batch", "16", "--epochs", "1", "--repeats", "1"]
    where = ["--device", "cpu", "--threads", "1", "--workers", "0", "--out", str(out)]
    command = ["training", *size, *networks, *where]
    done = benchmarks(*command)
    assert done.returncode == 0, done.stderr
    return command, out.read_text("utf-8"), json.loads(out.with_suffix(".json").read_text("utf-8"))


@pytest.mark.slow
def test_speed_ratios_follow_from_the_speeds(speed):
    command, page, raw = speed
    states_its_origin(page, command)
    assert raw["provenance"]["host"].startswith(cpu_name())
    assert not any(timing["weights"] for timing in raw["timings"])  # a path of this machine
    rows = rows_of(page, "Speed")
    kinds = ["teacher", "baseline", "distillation, live teacher", "distillation, kept views"]
    assert list(rows) == kinds
    for row in rows.values():
        usual, ours = number(row["usual images/s"]), number(row["ours images/s"])
        assert number(row["ratio"]) == approx(ours / usual, rel=0.02, abs=0.006)
        assert usual > 0 and number(row["usual peak MB"]) > 50 < number(row["ours peak MB"])
    goals = rows_of(page, "Goals")
    relative = number(goals["kept-views distillation epoch / baseline epoch, time"]["found"])
    speeds = [number(rows[kinds[i]]["ours images/s"]) for i in (1, 3)]
    assert relative == approx(speeds[0] / speeds[1], rel=0.02, abs=0.006)


def test_speed_of_kept_views_is_also_told_with_the_teacher_passes():
    """Told by hand: 1,000 images at 400/s are 2.5 s an epoch, at 100/s 10 s; a view costs 5 s."""
    options = training.Options(
        source="cifar10",
        synthetic=True,
        images=1000,
        epochs=1,
        repeats=1,
        batch=100,
        teacher="resnet8_cifar",
        teacher_width=1,
        student="mobilenet_v2",
        student_width=0.5,
        stem_stride=1,
        views=2,
        threads=1,
        workers=0,
        device="cpu",
    )

    def timing(side, kind, speed, *view_seconds):
        speeds = (1.0, speed)
        return training.Timing(
            side=side,
            kind=kind,
            images_per_second=speeds,
            peak_bytes=1,
            view_seconds=view_seconds,
        )

    timings = [timing("usual", kind, 100.0) for kind in ("teacher", "baseline", "live")]
    timings += [timing("ours", kind, 400.0) for kind in ("teacher", "baseline", "live")]
    found = training.Found(
        options=options,
        setup=training.Setup(data="", images=1000, networks={}, threads=1, device="cpu"),
        workers=0,
        trial={},
        timings=(*timings, timing("ours", "kept", 400.0, 4.0, 6.0)),
    )
    goals = cells(pages.speed_tables(found)[1])
    kept = "distillation, kept views"
    passes = f"{kept}, with the teacher's passes over 2 views spread over {{}} epochs"
    assert goals[1][:2] == (f"{kept} / usual distillation, images/s", "4.00")
    after = " / usual distillation, images/s"
    assert goals[2] == (passes.format(2) + after, f"{20 / (5 + 10):.2f}", "–")
    assert goals[3] == (passes.format(200) + after, f"{2000 / (500 + 10):.2f}", "–")


@pytest.mark.slow
def test_speed_both_loops_see_the_same_images(speed):
    _, page, raw = speed
    assert raw["setup"]["images"] == 32  # two whole batches of 40 images
    assert "random images of CIFAR-10's shape" in page
    assert re.search(r"- student: mobilenet_v2 ×0.25, stem stride 1, [\d,]+ parameters", page)
    sides = [(each["side"], each["kind"]) for each in raw["timings"]]
    kinds = ("teacher", "baseline", "live", "kept")
    in_turn = [(side, kind) for kind in kinds for side in ("usual", "ours")]
    assert sides == [turn for turn in in_turn if turn != ("usual", "kept")]
    assert all(len(each["images_per_second"]) == 2 for each in raw["timings"])
    assert len(raw["timings"][-1]["view_seconds"]) == 2


def test_speed_refuses_what_it_cannot_time(tmp_path):
    out = ("--out", tmp_path / "x.md")
    refused(benchmarks("training", "--batch", "1", *out), "batch", "greater than or equal to 2")
    refused(benchmarks("training", "--source", "mnist", *out), "source", "'mnist'")
    refused(benchmarks("training", "--out", tmp_path / "x.txt"), "x.txt", "end in .md")
    wrong = benchmarks("training", "--synthetic", "--images", "40", "--teacher", "resnet21", *out)
    refused(wrong, "no network is called `resnet21`", "teachers:")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    """The folder of a tiny tournament."""
    folder = tmp_path_factory.mktemp("arena")
    images = make_set(folder / "images")
    (folder / "run.toml").write_text(
        f'name = "tiny"\nthreads = 1\ndevice = "cpu"\n'
        f'[data]\nsource = "folder"\nfolder = "{images}"\n'
        f'[teach]\narch = "resnet8_cifar"\n{RECIPE}\n'
        f'[student]\narch = "mobilenet_v3_small"\nwidth = 0.25\n{RECIPE}\n'
        "[distill]\nhard_weight = 0.5\n",
        encoding="utf-8",
    )
    return folder


def tournament(arena, text, name="tournament.toml"):
    path = arena / name
    path.write_text(f'config = "{arena / "run.toml"}"\n{text}', encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def gains(arena):
    """What `distillation` writes: page and raw numbers."""
    path, out = tournament(arena, f"more_seeds = [3]\n{TINY}"), arena / "results" / "gains.md"
    command = ["distillation", str(path), "--store", str(arena / "store"), "--out", str(out)]
    done = benchmarks(*command)
    assert done.returncode == 0, done.stderr
    return command, out.read_text("utf-8"), json.loads(out.with_suffix(".json").read_text("utf-8"))


@pytest.mark.slow
def test_each_entrant_is_compared_with_the_baseline_of_its_recipe(gains):
    command, page, raw = gains
    states_its_origin(page, command)
    rows = {row["name"]: row for row in raw["rows"]}
    against = {name: row["baseline"] for name, row in rows.items()}
    assert against == {
        "baseline": None,
        "kd": "baseline",
        "baseline of matching": None,
        "matching": "baseline of matching",
        "baseline of wild": None,
        "wild": "baseline of wild",
    }
    for name in ("kd", "matching"):
        row = rows[name]
        assert row["gain"] == approx(row["top1"] - rows[against[name]]["top1"])
        assert row["gain_ci95"][0] <= row["gain"] <= row["gain_ci95"][1]
        assert row["top1_ci95"][0] <= row["top1"] <= row["top1_ci95"][1]
    written = rows_of(page, "Entrants, one seed")
    assert number(written["kd"]["test % (95 %)"]) == approx(100 * rows["kd"]["top1"], abs=0.006)
    assert "hard weight 0.1" in written["kd"]["settings"]  # not the file's own 0.5
    assert "mixup 1" in written["matching"]["settings"]
    assert "1 kept view" in written["matching"]["settings"]
    assert written["baseline of wild"]["settings"].startswith("no teacher, learning rate 1e+09")


@pytest.mark.slow
def test_a_diverged_entrant_is_said_so_and_the_best_gets_more_seeds(gains):
    _, page, raw = gains
    assert "diverged" in rows_of(page, "Entrants, one seed")["wild"]["settings"]
    best = raw["best"]
    rows = {row["name"]: row for row in raw["rows"] if row["baseline"] and not row["failed"]}
    assert rows[best]["val_top1"] == max(row["val_top1"] for row in rows.values())
    pair = [rows[best]["baseline"], best]
    again = [(row["name"], row["seed"]) for row in raw["seeds"]]
    assert again == [(name, seed) for seed in (0, 3) for name in pair]
    assert len({row["key"] for row in raw["seeds"]}) == 4
    assert f"{best}, mean (t)" in page


@pytest.mark.slow
def test_nothing_is_trained_twice(gains, arena):
    command, _, raw = gains
    trained = sorted((arena / "store").glob("[bd]*/*/weights.pt"))
    before = [path.stat().st_mtime_ns for path in trained]
    out = arena / "again.md"
    assert benchmarks(*command[:-1], out).returncode == 0
    assert [path.stat().st_mtime_ns for path in trained] == before and len(before) > 4
    again = json.loads(out.with_suffix(".json").read_text("utf-8"))
    assert again["rows"] == raw["rows"] and again["seeds"] == raw["seeds"]


def test_the_mean_over_seeds_says_over_how_many():
    both = {"words": "", "top1": 0.9, "top1_ci95": (0.89, 0.91)}
    kd = {**both, "baseline": "baseline", "gain": 0.01, "gain_ci95": (0.0, 0.02), "mcnemar_p": 0.1}

    def page(*seeds):
        words = dict.fromkeys(("data", "teacher", "student", "budget"), "")
        found = distillation.Found(**words, best="kd", rows=(), seeds=seeds)
        return pages.gain_facts(found), cells(pages.gain_tables(found)[1])

    def pair(seed):
        alone = distillation.Row(name="baseline", seed=seed, baseline=None, **both)
        return alone, distillation.Row(name="kd", seed=seed, **kd)

    facts, rows = page(*pair(7), *pair(8))
    mean = "90.00 (90.00–90.00)"
    assert rows[4] == ("baseline, mean (t)", "n=2", "", mean, "", "")
    assert rows[5] == ("kd, mean (t)", "n=2", "", mean, "+1.00 (+1.00 to +1.00)", "")
    assert any(
        "first seed (7) alone" in fact and "among those of the mean" in fact for fact in facts
    )

    lost = distillation.Row(name="baseline", words="", seed=9, baseline=None, failed="diverged")
    _, rows = page(*pair(7), *pair(8), lost, pair(9)[1].model_copy(update={"gain": None}))
    assert rows[6] == ("baseline, mean (t)", "1 failed", "", "", "", "")
    assert rows[7] == ("kd, mean (t)", "1 failed", "", "", "", "")


@pytest.mark.parametrize("ended", ["1234567890", "1234567890 + uncommitted changes"])
def test_a_page_says_that_the_tree_changed_during_the_run(tmp_path, monkeypatch, ended):
    monkeypatch.setattr(publishing, "_commit", lambda: ended)
    out, origin = tmp_path / "x.md", {"commit": "1234567890"}
    raw = distillation.Found(
        data="", teacher="", student="", budget="", best=None, rows=(), seeds=()
    )
    publishing.publish("Title", origin, [], [], raw, out)
    line = "1234567890"
    if ended != line:
        line += f" (the tree changed during the run; at its end {ended})"
    assert f"- commit: {line}\n" in out.read_text("utf-8")
    assert json.loads(out.with_suffix(".json").read_text("utf-8"))["provenance"]["commit"] == line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["entrant: field required"]),
        ('[[entrant]]\nnam = "kd"', ["entrant 1.nam: unknown key; did you mean `name`?"]),
        ('[[entrant]]\nname = "kd"\n[[entrant]]\nname = "kd"', ["two rows are called `kd`"]),
        ('[[entrant]]\nname = "a"\nset = ["distill.method=kdd"]', ["no method is called `kdd`"]),
        (
            '[[entrant]]\nname = "a"\nset = ["student.recipe.epochs=9", "teach.width=2"]',
            ["entrant `a` changes teach, student.recipe.epochs, which all must share"],
        ),
        (
            '[[entrant]]\nname = "a"\nset = ["distill.method=function_matching"]',
            ["mixes none", "student.recipe.augment.mixup"],
        ),
        ('more_seeds = [0]\n[[entrant]]\nname = "a"', ["more_seeds names the first seed, 0"]),
        ("entrant = [", ["is not valid TOML"]),
    ],
)
def test_a_tournament_that_makes_no_sense(arena, text, words):
    with pytest.raises(ConfigError) as error:
        distillation.read(tournament(arena, text, "wrong.toml"))
    told = " ".join(str(error.value).split())
    assert not [word for word in words if word not in told], told


def test_a_wrong_tournament_ends_before_anything_is_done(arena, tmp_path):
    path, out = tournament(arena, '[[entrant]]\nnam = "kd"', "wrong.toml"), tmp_path / "x.md"
    refused(benchmarks("distillation", path, "--store", tmp_path / "s", "--out", out), "`name`?")
    missing = benchmarks("distillation", tmp_path / "no.toml", "--out", out)
    refused(missing, "cannot read", "no.toml")
    assert not list(tmp_path.iterdir())


def test_the_tournament_that_ships_can_be_read():
    entries = distillation.read(ROOT / "benchmarks" / "experiments" / "tournament.toml")
    methods = {row.config.distill.method for row in entries.rows if row.baseline}
    assert methods == {"kd", "dkd", "dist", "function_matching"}
    assert len(entries.rows) == 8 and entries.more_seeds == (1, 2)
    rows = {row.name: row for row in entries.rows}
    assert rows["function matching"].words.endswith(", augment.mixup 1")
    assert rows["kd, mild"].words.endswith(", 4 kept views")


@pytest.mark.parametrize("experiment", ["distillation", "quantization"])
def test_results_are_needed_by_a_page_only_when_it_is_written(tmp_path, monkeypatch, experiment):
    seen = []

    def nothing(_, store):  # what it does is none of this test's
        seen.append(references.read(store.root))
        return []

    def full(*_):
        raise StoreError("no space left")

    monkeypatch.setattr(f"benchmarks.experiments.{experiment}.run", nothing)
    for name in ("gain_facts", "gain_tables", "int8_facts", "int8_tables"):
        monkeypatch.setattr(pages, name, lambda _: [])
    monkeypatch.setattr(commands, "publish", full)
    plan = ROOT / "benchmarks" / "experiments" / "tournament.toml"
    more = {"folder": []} if experiment == "quantization" else {}
    if more:
        plan = plan.with_name("quantization.toml")
    with pytest.raises(StoreError, match="no space left"):
        getattr(commands, experiment)(plan, [], store=tmp_path / "s", out=tmp_path / "x.md", **more)
    (before,), (after,) = seen[0], references.read(tmp_path / "s")
    assert before.alive and not after.alive and not after.reference.finished


def test_what_an_entrant_changes_of_the_recipe_is_said_of_its_baseline_too(tmp_path):
    text = 'config = "pipeline/configs/quick.toml"\n[[entrant]]\nname = "slow"\n'
    (tmp_path / "slow.toml").write_text(text + 'set = ["student.recipe.learning_rate=0.01"]')
    rows = {row.name: row for row in distillation.read(tmp_path / "slow.toml").rows}
    slow = rows["slow"]
    assert slow.words.endswith(", learning rate 0.01")
    assert slow.baseline and rows[slow.baseline].words == "no teacher, learning rate 0.01"


def test_help_starts_without_torch():
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['x', '--help']; " + (
        "import runpy; runpy.run_module('benchmarks', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "training" in done.stdout and "distillation" in done.stdout


def test_images_of_int8_that_nobody_named_are_refused_before_any_work():
    from benchmarks.experiments import quantization

    plan = Path(__file__).parents[1] / "benchmarks" / "experiments" / "quantization.toml"
    with pytest.raises(ConfigError, match="no images are called moons"):
        quantization.read(plan, folders={"moons": Path()})
    found = quantization.read(plan, folders={"CIFAR-10": Path("here")})
    assert len(found) == 8 and {config.quantize.sensitivity_images for _, config in found} == {0}
    assert {c.data.source for name, c in found if name == "CIFAR-10"} == {"folder"}
