"""Pruning: what runs need stays, with what it was made of; the rest goes, whole."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pipeline import pruning, references
from pipeline.errors import StoreError
from pipeline.records import Measurement
from pipeline.store import Store, resume_folder
from pipeline.summary import FILE
from tests.pictures import make_set

ROOT = Path(__file__).parents[1]


def make(store, stage, *parents, inside=(), **settings):
    """A result of `stage`, whose work asks for those of the stages `inside`."""

    def work(folder):
        for name in inside:
            make(store, name, **settings)
        (folder / "a.bin").write_bytes(bytes(1000))
        return Measurement(load_ms=1.0)

    return store.get(Measurement, stage, work, version=1, settings=settings, parents=parents)


def finish(runs, name, **settings):
    """A run of four results, the last of which was made of the first two."""
    store = Store(runs / ".store")
    with store.referred_by(runs / name):
        data = make(store, "data")
        teacher = make(store, "teach", data)
        make(store, "distill", data, teacher, inside=["answers"], **settings)
        (runs / name).mkdir(exist_ok=True)
        (runs / name / FILE).write_text("{}")


def stages(runs):
    """How many results of each stage there are."""
    homes = [path.parent.parent.name for path in runs.glob(".store/[!.]*/*/record.json")]
    return {stage: homes.count(stage) for stage in homes}


def survey(runs, **more):
    return pruning.survey(runs / ".store", runs, **more)


def prune(runs, **more):
    pruning.remove(survey(runs, **more))
    return stages(runs)


ALL = {"data": 1, "teach": 1, "distill": 1, "answers": 1}


def test_a_run_keeps_its_results_and_all_they_were_made_of(tmp_path):
    finish(tmp_path, "one")
    plan = survey(tmp_path)
    assert (plan.goes, len(plan.stays), plan.told) == ([], 4, [])
    # Run again, nothing asks for `answers`: the distilled network is there. It names them itself.
    finish(tmp_path, "one")
    (note,) = references.read(tmp_path / ".store")
    assert note.reference.finished and not note.alive
    assert not any(name.startswith("answers/") for name in note.reference.results)
    assert prune(tmp_path) == ALL


def test_a_deleted_run_takes_along_what_no_other_run_needs(tmp_path):
    finish(tmp_path, "one")
    finish(tmp_path, "two", temperature=2)
    assert stages(tmp_path) == ALL | {"distill": 2, "answers": 2}
    shutil.rmtree(tmp_path / "two")
    plan = survey(tmp_path)
    assert sorted(thing.kind for thing in plan.goes) == ["answers", "distill"]
    assert any("two is gone" in line for line in plan.told)
    told = pruning.remove(plan)
    assert told.startswith("Removed 2, ") and stages(tmp_path) == ALL
    shutil.rmtree(tmp_path / "one")
    assert prune(tmp_path) == {}
    assert not references.read(tmp_path / ".store")


def test_a_run_with_other_settings_gives_up_what_it_had_before(tmp_path):
    finish(tmp_path, "one")
    finish(tmp_path, "one", temperature=2)
    assert prune(tmp_path) == ALL


def test_what_a_run_leaves_in_its_folder_keeps_its_results(tmp_path):
    finish(tmp_path, "one")
    store = Store(tmp_path / ".store")
    for _ in range(2):  # a search that finds nothing writes no report
        with store.referred_by(tmp_path / "one", replaces=False):
            make(store, "fit")
        assert len(references.read(tmp_path / ".store")) == 2  # the same search counts once
        assert prune(tmp_path) == ALL | {"fit": 1}
    with store.referred_by(tmp_path / "one", replaces=False):
        make(store, "fit", question=2)
        finish(tmp_path, "one", temperature=2)  # this one writes it
    assert prune(tmp_path) == ALL | {"fit": 1}


def test_runs_of_another_folder_on_the_same_store_count(tmp_path):
    runs, others = tmp_path / "runs", tmp_path / "others"
    finish(runs, "one")
    store = Store(runs / ".store")
    with store.referred_by(others / "far"):
        make(store, "measure")
        (others / "far").mkdir(parents=True)
    assert prune(runs) == ALL | {"measure": 1}
    others.rename(tmp_path / "away")
    plan = survey(runs)
    assert not plan.goes and "cannot be seen" in plan.told[0]
    (tmp_path / "away").rename(others)
    assert prune(runs) == ALL | {"measure": 1}
    (others / "near").mkdir()
    shutil.rmtree(others / "far")
    assert prune(runs) == ALL


def test_a_folder_of_runs_that_is_empty_may_be_one_that_is_not_mounted(tmp_path):
    store, place = Store(tmp_path / "big" / "store"), tmp_path / "mount"
    with store.referred_by(place / "one"):
        make(store, "teach")
        (place / "one").mkdir(parents=True)
    (place / ".store").symlink_to(store.root)
    shutil.rmtree(place / "one")
    plan = pruning.survey(place / ".store", place)
    assert not plan.goes and "nor anything beside it" in plan.told[0]
    (place / "two").mkdir()
    assert len(pruning.survey(place / ".store", place).goes) == 1


def test_a_run_is_known_by_another_name_and_moved_away_it_is_not(tmp_path):
    finish(tmp_path, "one")
    (tmp_path / "one").rename(tmp_path / "one-v1")
    assert (survey(tmp_path).told, prune(tmp_path)) == ([], ALL)
    finish(tmp_path, "one", temperature=2)  # its name is free for another
    both = ALL | {"distill": 2, "answers": 2}
    assert (survey(tmp_path).told, prune(tmp_path)) == ([], both)
    (tmp_path / "archive").mkdir()
    (tmp_path / "one-v1").rename(tmp_path / "archive" / "one-v1")
    plan = survey(tmp_path)
    assert f"{tmp_path / 'one'} is gone or moved" in plan.told[0]
    assert prune(tmp_path) == ALL
    finish(tmp_path, "one", temperature=3)  # in the same folder: stands in the place of the other
    assert prune(tmp_path) == ALL


def test_what_was_loaded_by_hand_stays_however_its_path_is_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finish(tmp_path, "one")
    (home,) = (tmp_path / ".store" / "distill").iterdir()
    (tmp_path / "link").symlink_to(home)
    for spelled in (home, home.relative_to(tmp_path), Path("link")):
        for parents in (True, False):
            store = Store(Path(".store"))
            with store.referred_by(Path("exported")):
                loaded = store.load(Measurement, spelled)
                assert loaded is not None
                if parents:
                    make(store, "export", loaded, spelled=str(spelled))
                else:
                    store.refer(loaded)
                Path("exported").mkdir(exist_ok=True)
            shutil.rmtree(tmp_path / "one", ignore_errors=True)
            more = {"export": 1} if parents else {}
            assert prune(tmp_path) == ALL | more
    with store.referred_by(Path("exported")):
        Store(tmp_path / "other").refer(loaded)  # another store has it not
    assert prune(tmp_path) == {}


def test_a_stage_whose_folder_is_a_link_out_of_the_store_is_in_it(tmp_path):
    (tmp_path / "big").mkdir()
    store = Store(tmp_path / ".store")
    store.root.mkdir()
    (store.root / "data").symlink_to(tmp_path / "big")
    with store.referred_by(tmp_path / "one"):
        make(store, "teach", make(store, "data"))
        (tmp_path / "one").mkdir()
    with store.referred_by(tmp_path / "one"):
        store.refer(make(store, "teach", make(store, "data")))
    (record,) = (store.root / "teach").glob("*/record.json")
    assert json.loads(record.read_text())["uses"][0].startswith("data/")


def test_a_moved_folder_of_runs_keeps_its_results(tmp_path):
    finish(tmp_path / "runs", "one")
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert prune(tmp_path / "moved") == ALL
    (tmp_path / "link").symlink_to(tmp_path / "moved" / ".store")
    assert not pruning.survey(tmp_path / "link", tmp_path / "moved").goes


def test_a_stopped_run_keeps_what_it_had_until_it_is_given_up(tmp_path):
    store = Store(tmp_path / ".store")
    with pytest.raises(RuntimeError), store.referred_by(tmp_path / "one"):
        make(store, "data")
        raise RuntimeError("no power")
    plan = survey(tmp_path)
    assert not plan.goes and "'one' stopped before its report" in plan.told[0]
    assert prune(tmp_path) == {"data": 1}
    assert prune(tmp_path, stopped=True) == {}
    assert not references.read(tmp_path / ".store")


def test_the_state_of_a_stopped_training_stays_until_it_is_given_up(tmp_path):
    finish(tmp_path, "one")
    partial = tmp_path / ".store" / ".partial" / "teach-0123456789abcdef"
    half, state = partial, resume_folder(partial)
    for folder in (half, state):
        folder.mkdir(parents=True)
        (folder / "state.pt").write_bytes(bytes(10))
    plan = survey(tmp_path)
    assert [(thing.kind, thing.path) for thing in plan.goes] == [(pruning.UNFINISHED, half)]
    assert "teach/0123456789abcdef goes on from stays" in plan.told[0]
    assert prune(tmp_path) == ALL and state.exists() and not half.exists()
    assert prune(tmp_path, stopped=True) == ALL and not state.exists()


def test_halves_of_results_that_runs_ask_for_go_too(tmp_path):
    finish(tmp_path, "one")
    store = Store(tmp_path / ".store")
    with pytest.raises(RuntimeError), store.referred_by(tmp_path / "killed"):
        make(store, "data")
        raise RuntimeError("no power")
    for note in references.read(tmp_path / ".store"):
        for name in note.reference.results:
            half = tmp_path / ".store" / ".partial" / name.replace("/", "-")
            half.mkdir(parents=True, exist_ok=True)
            resume_folder(half).mkdir(exist_ok=True)  # of a result that is there: of no use
    assert {thing.kind for thing in survey(tmp_path).goes} == {pruning.UNFINISHED, pruning.STOPPED}
    assert prune(tmp_path) == ALL
    assert not list((tmp_path / ".store" / ".partial").iterdir())


def test_what_a_living_process_works_on_or_asked_for_stays(tmp_path):
    finish(tmp_path, "one")
    shutil.rmtree(tmp_path / "one")
    store = Store(tmp_path / ".store")
    with store.referred_by(tmp_path / "new"):
        teacher = make(store, "teach", make(store, "data"))
        plan = survey(tmp_path, stopped=True)
        assert {thing.kind for thing in plan.goes} == {"distill", "answers"}
        assert any("'new' under way since" in line for line in plan.told)
        made = next(thing for thing in plan.goes if thing.kind == "distill")
        with store.alone(made.lock):
            assert made not in survey(tmp_path).goes
            assert "1 stay" in pruning.remove(plan)
    assert stages(tmp_path) == {"data": 1, "teach": 1, "distill": 1}
    assert teacher.folder.exists()


def test_what_a_run_asks_for_between_the_showing_and_the_removal_stays(tmp_path):
    finish(tmp_path, "one")
    shutil.rmtree(tmp_path / "one")
    plan = survey(tmp_path)
    assert len(plan.goes) == 4
    store = Store(tmp_path / ".store")
    with store.referred_by(tmp_path / "new"):
        make(store, "data")
        assert "1 stay: a run has come to use them" in pruning.remove(plan)
        assert stages(tmp_path) == {"data": 1}


def test_what_a_run_made_use_of_while_the_question_stood_stays(tmp_path):
    finish(tmp_path, "one")
    shutil.rmtree(tmp_path / "one")
    plan = survey(tmp_path)
    finish(tmp_path, "two")  # begun and ended; of its own accord it asks for no `answers`
    assert "4 stay" in pruning.remove(plan)
    assert stages(tmp_path) == ALL and prune(tmp_path) == ALL


def test_what_a_result_was_made_of_that_a_run_asks_for_at_the_last_stays(tmp_path, monkeypatch):
    finish(tmp_path, "one")
    shutil.rmtree(tmp_path / "one")
    plan, store = survey(tmp_path), Store(tmp_path / ".store")
    made = next(thing for thing in plan.goes if thing.kind == "distill")
    look = pruning.survey

    def late(*words, **more):  # the run begins between the last survey and the removal
        found = look(*words, **more)
        loaded = store.load(Measurement, made.path)
        assert loaded is not None
        store.refer(loaded)
        return found

    with store.referred_by(tmp_path / "new"):
        monkeypatch.setattr(pruning, "survey", late)
        assert "4 stay" in pruning.remove(plan)
        assert stages(tmp_path) == ALL


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_at_a_terminal_it_asks(tmp_path):
    import pty

    finish(tmp_path, "one")
    shutil.rmtree(tmp_path / "one")
    for answer, left in ((b"n\n", ALL), (b"y\n", {})):
        ours, theirs = pty.openpty()
        line = [sys.executable, "-m", "pipeline", "prune", "--runs", str(tmp_path)]
        try:
            os.write(ours, answer)
            done = subprocess.run(line, cwd=ROOT, stdin=theirs, capture_output=True, text=True)
        finally:
            os.close(ours)
            os.close(theirs)
        assert done.returncode == 0 and "Remove it?" in done.stdout, done.stderr
        assert stages(tmp_path) == left


def of_before(runs):
    """Undo what results and runs say since there are notes."""
    shutil.rmtree(runs / ".store" / references.FOLDER)
    for record in (runs / ".store").glob("[!.]*/*/record.json"):
        body = json.loads(record.read_text())
        del body["uses"]
        record.write_text(json.dumps(body))


def test_a_run_of_before_there_were_notes_keeps_all_that_may_be_its_own(tmp_path):
    finish(tmp_path, "old")
    of_before(tmp_path)
    finish(tmp_path, "new", temperature=2)  # takes `data` and `teach` from the old one
    plan = survey(tmp_path)
    assert not plan.goes and "'old' is of an earlier version" in plan.told[0]
    shutil.rmtree(tmp_path / "new")
    later = time.time() + 5  # certainly after the report of the old one
    for record in (tmp_path / ".store" / "distill").glob("*/record.json"):
        if "uses" in json.loads(record.read_text()):
            os.utime(record, (later, later))
    assert prune(tmp_path)["distill"] == 1
    finish(tmp_path, "old")
    assert prune(tmp_path) == ALL  # nobody knows any more whose the `answers` are
    assert "1 result of an earlier version stay" in survey(tmp_path).told[0]
    assert prune(tmp_path, older=True) == {"data": 1, "teach": 1, "distill": 1}


def test_results_of_before_there_were_notes_stay_where_their_runs_are_not_known(tmp_path):
    runs, other = tmp_path / "runs", tmp_path / "other"
    finish(runs, "old")
    of_before(runs)
    for older in (False, True):
        with pytest.raises(StoreError, match=f"4 results of an earlier .* {other} is no folder"):
            pruning.survey(runs / ".store", other, older=older)
    other.mkdir()
    plan = pruning.survey(runs / ".store", other)
    assert not plan.goes and "4 results of an earlier version stay" in plan.told[0]
    assert len(pruning.survey(runs / ".store", other, older=True).goes) == 4
    assert not pruning.survey(runs / ".store", runs, older=True).goes


def test_a_damaged_note_harms_no_other_run(tmp_path):
    finish(tmp_path, "one")
    (note,) = references.read(tmp_path / ".store")
    note.file.write_text("")
    finish(tmp_path, "two")
    with pytest.raises(RuntimeError), Store(tmp_path / ".store").referred_by(tmp_path / "three"):
        raise RuntimeError("no power")
    assert list(references.unfinished(tmp_path)) == ["three"]
    note.file.unlink()
    assert [n.reference.finished for n in references.read(tmp_path / ".store")] == [False, True]


AS_ANOTHER = """
import os, sys
from pathlib import Path
from pipeline import pruning, references, summary
from pipeline.errors import StoreError

runs, how = Path(sys.argv[1]), sys.argv[2]
plan = pruning.survey(runs / ".store", runs)  # loads all that is needed as the one who may
os.setegid(12345)
os.seteuid(12345)
if how == "locks":
    print(references.unfinished(runs))
    plan = pruning.survey(runs / ".store", runs)
    print(len(plan.goes), *plan.told)
try:
    references.read(runs / ".store")
except StoreError as error:
    print(error.message)
"""


@pytest.fixture
def shared():
    """A folder that other users may read; those of pytest are closed to them."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def as_another(runs, how):
    line = [sys.executable, "-c", AS_ANOTHER, str(runs), how]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="only root becomes another user"
)
def test_where_no_lock_may_be_opened_nothing_false_is_told(shared):
    finish(shared, "one")
    finish(shared, "two", temperature=2)
    shutil.rmtree(shared / "two")
    with pytest.raises(RuntimeError), Store(shared / ".store").referred_by(shared / "three"):
        raise RuntimeError("no power")
    for lock in (shared / ".store").rglob("*"):
        if lock.is_file() and (lock.suffix == ".lock" or lock.parent.name == ".locks"):
            lock.chmod(0o600)
    told = as_another(shared, "locks")
    assert "{'three': 'under way or stopped (its lock may not be opened here); begun" in told
    assert "\n0 " in told and "2 results stay, for it cannot be told" in told
    assert "'one'" not in told
    for note in (shared / ".store" / references.FOLDER).glob("*.json"):
        note.chmod(0o600)
    assert "may not be read" in as_another(shared, "notes")
    (shared / ".store" / references.FOLDER).chmod(0o700)
    assert "may not be read" in as_another(shared, "notes")


def test_a_damaged_record_stays_as_others_do_and_a_damaged_note_stops_it_all(tmp_path):
    finish(tmp_path, "one")
    for record in (tmp_path / ".store").glob("*/*/record.json"):
        record.write_text("{")
    assert not survey(tmp_path).goes
    (note,) = references.read(tmp_path / ".store")
    note.file.write_text("{")
    with pytest.raises(StoreError, match="what a run needs cannot be read"):
        survey(tmp_path)


def test_only_a_store_is_pruned(tmp_path):
    (tmp_path / "photos" / "0123456789abcdef").mkdir(parents=True)
    with pytest.raises(StoreError, match="is no store of results"):
        pruning.survey(tmp_path, tmp_path)
    (tmp_path / pruning.LOCKS).mkdir()
    (tmp_path / "photos" / "holiday").mkdir()
    assert [thing.path.name for thing in pruning.survey(tmp_path, tmp_path).goes] == [
        "0123456789abcdef"
    ]


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline import pruning

plan = pruning.survey(Path(sys.argv[1]), Path(sys.argv[2]))
real = pruning._delete

def killed(folder):  # in the middle of the second one
    if "killed" in globals() and killed.seen:
        next(iter(sorted(folder.iterdir()))).unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    killed.seen = True
    real(folder)

killed.seen = False
pruning._delete = killed
pruning.remove(plan)
"""


def test_a_killed_prune_leaves_whole_results_and_the_next_one_ends_it(tmp_path):
    finish(tmp_path, "one")
    shutil.rmtree(tmp_path / "one")
    line = [sys.executable, "-c", KILLED, str(tmp_path / ".store"), str(tmp_path)]
    assert subprocess.run(line, cwd=ROOT).returncode == -signal.SIGKILL
    left = list((tmp_path / ".store").glob("[!.]*/*"))
    assert len(left) == 2
    assert all(Store.load(Measurement, home) is not None for home in left)
    assert pruning.LEFT in {thing.kind for thing in survey(tmp_path).goes}
    assert prune(tmp_path) == {}
    assert not list((tmp_path / ".store" / pruning.ASIDE).iterdir())


GOING = """
import sys, time
from pathlib import Path
from pipeline.store import Store
from tests.test_pruning import make

runs = Path(sys.argv[1])
with (store := Store(runs / ".store")).referred_by(runs / "one"):
    make(store, "teach", make(store, "data"))
    print("made", flush=True)
    time.sleep(600)
"""


def test_a_killed_run_goes_on_with_what_it_had(tmp_path):
    line = [sys.executable, "-c", GOING, str(tmp_path)]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "made\n"
        (told,) = survey(tmp_path).told
        assert "'one' under way since" in told
        assert references.unfinished(tmp_path)["one"].startswith("under way since")
    finally:
        process.kill()
        process.communicate()
    (told,) = survey(tmp_path).told
    assert "'one' stopped before its report" in told
    assert prune(tmp_path) == {"data": 1, "teach": 1}
    store = Store(tmp_path / ".store")
    with store.referred_by(tmp_path / "one"):
        make(store, "teach", make(store, "data"))
        (tmp_path / "one").mkdir()
    assert all(each.reused for each in store.outcomes)
    assert survey(tmp_path).told == []


SETTINGS = """
name = "small"
device = "cpu"
threads = 2
data = {{ source = "folder", folder = {folder} }}
teach = {{ arch = "resnet8_cifar", recipe = {{ epochs = 1, batch_size = 16 }} }}
baseline = {{ enabled = false }}
quantize = {{ enabled = false }}
export = {{ formats = ["onnx"], onnx = {{ precisions = ["fp32"] }} }}
measure = {{ profile = "smoke" }}

[student]
arch = "mobilenet_v2"
width = 0.25
stem_stride = 2
recipe = {{ epochs = 1, batch_size = 16 }}
"""


def pipeline(*words):
    line = [sys.executable, "-m", "pipeline", *map(str, words)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_after_pruning_a_real_run_finds_all_its_results_and_a_deleted_export_none(tmp_path):
    make_set(tmp_path / "set", train=60, test=20)
    settings, runs = tmp_path / "small.toml", tmp_path / "runs"
    text = SETTINGS.format(folder=json.dumps(str(tmp_path / "set")))
    settings.write_text(text, encoding="utf-8")
    pipeline("run", settings, "--runs", runs)
    before = stages(runs)
    assert before["data"] == before["teach"] == before["distill"] == 1 and before["measure"] > 1
    assert not survey(runs).goes
    pipeline("export", "small", "--format", "ort", "--runs", runs)
    with_export = stages(runs)
    assert with_export["export-ort"] > 0
    (note,) = (n for n in references.read(runs / ".store") if n.owner.name == "small-export")
    by_hand = {name.split("/")[0] for name in note.reference.results[:2]}
    assert by_hand == {"data", "distill"}
    assert not survey(runs).goes

    shutil.rmtree(runs / "small-export")
    asked = pipeline("prune", "--runs", runs)
    assert "Nothing was removed: --yes removes it." in asked.stdout
    assert "export-ort" in asked.stdout and stages(runs) == with_export
    assert "Removed" in pipeline("prune", "--runs", runs, "--yes").stdout
    assert stages(runs) == before
    assert "Nothing to do" in pipeline("run", settings, "--runs", runs).stderr
