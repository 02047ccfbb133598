"""The data stage: from folders and public sets to a checked `Dataset`."""

import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from pipeline import sources
from pipeline.context import Context
from pipeline.errors import DataError
from pipeline.images import open_split
from pipeline.ingest import mean_and_std
from pipeline.splits import shares, stratified
from pipeline.stages.data import Data
from pipeline.store import Store

SPLITS = ("train", "val", "test")


def fill(folder: Path, n: int, seed: int = 0, size=(8, 8), channels=3) -> None:
    """Write `n` noisy images."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    for i in range(n):
        pixels = np.random.default_rng((seed, i)).integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")


def tree(root: Path, counts: dict[str, int], **options) -> Path:
    for seed, (name, n) in enumerate(counts.items()):
        fill(root / name, n, seed, **options)
    return root


def two_classes(root: Path) -> Path:
    return tree(root, {"train/a": 10, "train/b": 20, "test/a": 3, "test/b": 3})


@pytest.fixture
def context(tmp_path):
    return Context(store=Store(tmp_path / ".store"))


def run(context, folder, **settings):
    return Data(source="folder", folder=folder, **settings).run(context)


def pixels(dataset, split: Any):
    return open_split(dataset, split)[:]


def rows(dataset, split: Any):
    return [image.tobytes() for image in pixels(dataset, split)]


# Layouts


def test_train_and_test_folders(tmp_path, context):
    dataset = run(context, two_classes(tmp_path / "set"))
    assert dataset.labels == ("a", "b")
    assert [getattr(dataset, split).n for split in SPLITS] == [27, 3, 6]
    assert (dataset.input.size, dataset.input.channels) == (8, 3)
    assert open_split(dataset, "test").labels.tolist() == [0, 0, 0, 1, 1, 1]
    with Image.open(tmp_path / "set/test/a/000.png") as first:
        assert np.array_equal(pixels(dataset, "test")[0], np.asarray(first))


def test_validation_folder_is_used_as_it_is(tmp_path, context):
    root = two_classes(tmp_path / "set")
    dataset = run(context, tree(root, {"valid/a": 2, "valid/b": 5}))
    assert [getattr(dataset, split).n for split in SPLITS] == [30, 7, 6]


def test_val_without_test_is_the_test_split(tmp_path, context):
    root = tree(tmp_path / "set", {"train/a": 10, "train/b": 10, "val/a": 3, "val/b": 4})
    dataset = run(context, root)
    assert [getattr(dataset, split).n for split in SPLITS] == [18, 2, 7]
    assert "val/ as the test split" in dataset.source


@pytest.mark.parametrize(
    ("train", "test", "val"),
    [("Train", "Test", None), ("Training", "Testing", "Valid"), ("TRAIN", "test", "validation")],
)
def test_other_spellings_of_the_splits(tmp_path, context, train, test, val):
    counts = {f"{train}/a": 10, f"{train}/b": 20, f"{test}/a": 3, f"{test}/b": 3}
    root = tree(tmp_path / "set", counts | ({f"{val}/a": 2, f"{val}/b": 5} if val else {}))
    dataset = run(context, root)
    assert dataset.labels == ("a", "b")
    wanted = [30, 7, 6] if val else [27, 3, 6]
    assert [getattr(dataset, split).n for split in SPLITS] == wanted
    assert "split" not in dataset.source


def test_training_and_validation_alone(tmp_path, context):
    counts = {"training/a": 10, "training/b": 10, "validation/a": 3, "validation/c": 4}
    root = tree(tmp_path / "set", counts)
    fails(context, root, r"in .*training and .*validation differ: only in training: b")
    (root / "validation/c").rename(root / "validation/b")
    dataset = run(context, root)
    assert [getattr(dataset, split).n for split in SPLITS] == [18, 2, 7]
    assert "validation/ as the test split" in dataset.source


@pytest.mark.parametrize("above", ["", "train/"])
def test_one_tree_is_split_by_seed(tmp_path, context, above):
    root = tree(tmp_path / "set", {f"{above}a": 20, f"{above}b": 40})
    dataset = run(context, root)
    assert [getattr(dataset, split).n for split in SPLITS] == [43, 5, 12]
    assert np.bincount(open_split(dataset, "test").labels).tolist() == [4, 8]
    assert np.bincount(open_split(dataset, "val").labels).tolist() == [2, 3]
    seen = [image for split in SPLITS for image in rows(dataset, split)]
    assert len(set(seen)) == 60


@pytest.mark.parametrize("name", ["train", "Training", "test"])
def test_a_class_may_be_called_like_a_split(tmp_path, context, name):
    dataset = run(context, tree(tmp_path / "set", {"bus": 5, name: 5}))
    assert set(dataset.labels) == {"bus", name}


def test_names_depths_links_and_clutter(tmp_path, context):
    root = tmp_path / "ein Ordner"
    fill(root / "Katze & Kätzchen" / "deep" / "er", 4)
    fill(tmp_path / "elsewhere", 4, seed=1)
    (root / "犬").symlink_to(tmp_path / "elsewhere")
    (root / "犬" / "000.png").rename(root / "犬" / "Größe 1.PNG")
    (root / "犬" / "loop").symlink_to(root)
    (root / "犬" / "notes.txt").write_text("no image")
    (root / "犬" / "._000.png").write_text("a Mac's shadow file")
    fill(root / ".hidden", 2)
    (root / "montage.png").write_bytes((root / "犬" / "001.png").read_bytes())
    for limit in (4096, 0):
        dataset = run(context, root, memory_limit_mb=limit)
        assert dataset.labels == ("Katze & Kätzchen", "犬")
        assert sum(getattr(dataset, split).n for split in SPLITS) == 8
        assert all(len(pixels(dataset, split)) for split in SPLITS)


def test_one_spelling_of_a_class(tmp_path, context):
    apart = unicodedata.normalize("NFD", "é")
    root = tree(tmp_path / "set", {"train/é": 4, "train/b": 4, f"test/{apart}": 1, "test/b": 1})
    assert run(context, root).labels == ("b", "é")


def test_numbers_are_sorted_as_numbers(tmp_path, context):
    root = tree(tmp_path / "set", {str(name): 3 for name in (10, 9, 1)})
    assert run(context, root).labels == ("1", "9", "10")


# Errors


def fails(context, folder, match, **settings):
    with pytest.raises(DataError, match=match) as caught:
        run(context, folder, **settings)
    assert caught.value.remedy
    assert not list(context.store.root.glob("data/*"))


def test_folder_missing(tmp_path, context):
    fails(context, tmp_path / "nowhere", "nowhere does not exist")
    (tmp_path / "file").touch()
    fails(context, tmp_path / "file", "is not a folder")
    with pytest.raises(ValidationError, match="needs `folder`"):
        Data(source="folder")


def test_no_images(tmp_path, context):
    (tmp_path / "set").mkdir()
    fails(context, tmp_path / "set", "no images in .*set")
    fill(tmp_path / "set", 3)
    fails(context, tmp_path / "set", "no class folders in .*set")


def test_split_folders_without_classes(tmp_path, context):
    fails(context, tree(tmp_path / "set", {"train": 3, "test": 3}), "no class folders in .*train")


def test_one_class(tmp_path, context):
    fails(context, tree(tmp_path / "set", {"cat": 9}), "only one class, cat")


def test_classes_that_differ(tmp_path, context):
    root = tree(tmp_path / "set", {"train/a": 4, "train/b": 4, "test/a": 2, "test/c": 2})
    fails(context, root, "differ: only in train: b; only in test: c")


def test_two_validation_folders(tmp_path, context):
    root = tree(two_classes(tmp_path / "set"), {"val/a": 1, "valid/a": 1})
    fails(context, root, "val/ and valid/")


def test_two_training_folders(tmp_path, context):
    fails(context, tree(tmp_path / "set", {"Training/a": 1, "train/a": 1}), "Training/ and train/")


def test_splits_without_train(tmp_path, context):
    root = tree(tmp_path / "set", {"Testing/a": 2, "Testing/b": 2, "val/a": 2, "val/b": 2})
    fails(context, root, "Testing/ and val/, but no train/")


def test_empty_class(tmp_path, context):
    root = two_classes(tmp_path / "set")
    for name in ("train/empty", "test/empty"):
        (root / name).mkdir()
    fails(context, root, "no images in .*train for: empty")


def test_too_few_to_split(tmp_path, context):
    root = tree(tmp_path / "set", {"a": 9, "b": 2})
    fails(context, root, r"at least 3: validation and test images .* Short of that: b \(2\)")
    root = tree(tmp_path / "other", {"train/a": 9, "train/b": 1, "test/a": 1, "test/b": 1})
    fails(context, root, r"at least 2: validation images .* b \(1\)")


@pytest.mark.parametrize("limit", [4096, 0])
def test_all_unreadable_images_are_counted(tmp_path, context, limit):
    root = two_classes(tmp_path / "set")
    (root / "test/a/001.png").write_bytes(b"")
    (root / "test/b/dangling.jpg").symlink_to(tmp_path / "nowhere")
    for path in sorted((root / "train/b").iterdir())[:11]:
        path.write_bytes(path.read_bytes()[:-40])
    fails(context, root, r"13 of 37 images cannot", memory_limit_mb=limit)
    with pytest.raises(DataError) as caught:
        run(context, root)
    lines = caught.value.message.splitlines()
    assert len(lines) == 12
    assert lines[-1].strip() == "and 3 more"
    assert "train/b/0" in lines[1].replace("\\", "/")


def test_only_unreadable_images(tmp_path, context):
    root = two_classes(tmp_path / "set")
    for path in root.rglob("*.png"):
        path.write_bytes(b"nothing")
    fails(context, root, "36 of 36 images cannot be used")


def test_flat_images(tmp_path, context):
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "set" / name / f"{i}.png")
    fails(context, tmp_path / "set", "one flat colour")


def test_limits_too_small(tmp_path, context):
    root = two_classes(tmp_path / "set")
    fails(context, root, "limit_train = 3 is too few for 2 classes", limit_train=3)
    fails(context, root, "limit_test = 1 is too few", limit_test=1)


@pytest.mark.parametrize(
    "wrong", [{"validation_fraction": 0}, {"crop_fraction": 1.5}, {"channels": 2}, {"sise": 3}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValidationError):
        Data(**wrong)


# Splits


def test_shares():
    counts = np.array([10, 20, 70])
    assert shares(counts, 10).tolist() == [1, 2, 7]
    assert shares(counts, 3).tolist() == [1, 1, 1]
    assert shares(counts, 99, spare=2).tolist() == [8, 18, 68]
    assert shares(np.array([3, 3, 3]), 4).sum() == 4
    with pytest.raises(ValueError, match="fewer than 2"):
        shares(np.array([1, 5]), 2, spare=1)


def test_stratified():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [50, 30, 20]))
    chosen = stratified(labels, 10, (0, 3))
    assert np.bincount(labels[chosen]).tolist() == [5, 3, 2]
    assert np.array_equal(chosen, stratified(labels, 10, (0, 3)))
    assert not np.array_equal(chosen, stratified(labels, 10, (1, 3)))


def test_seed_decides_the_splits(tmp_path):
    root = tree(tmp_path / "set", {"a": 20, "b": 20})
    stores = [Context(store=Store(tmp_path / name)) for name in "xy"]
    first, same = (run(context, root) for context in stores)
    other = run(stores[0], root, seed=1)
    assert first.digest == same.digest != other.digest
    for split in SPLITS:
        assert rows(first, split) == rows(same, split)
        assert set(rows(first, split)) != set(rows(other, split))


def test_limits(tmp_path, context):
    root = two_classes(tmp_path / "set")
    dataset = run(context, root, limit_train=12, limit_test=4, validation_fraction=0.25)
    assert [getattr(dataset, split).n for split in SPLITS] == [9, 3, 4]
    assert np.bincount(open_split(dataset, "train").labels).tolist() == [3, 6]


# Form


def test_mixed_sizes_take_the_median_shorter_side(tmp_path, context, capsys):
    fill(tmp_path / "set/a", 3, size=(20, 10))
    fill(tmp_path / "set/b", 5, size=(16, 30))
    dataset = run(context, tmp_path / "set")
    assert dataset.input.size == 16
    assert "10 to 16 px, median 16" in " ".join(capsys.readouterr().err.split())


def test_chosen_size_is_bounded(tmp_path, context):
    assert run(context, tree(tmp_path / "s", {"a": 3, "b": 3}, size=(300, 300))).input.size == 224
    assert run(context, tree(tmp_path / "t", {"a": 3, "b": 3}, size=(3, 30))).input.size == 8


def test_grey_only_if_all_are(tmp_path, context):
    root = tree(tmp_path / "set", {"a": 4, "b": 4}, channels=1)
    assert run(context, root).input.channels == 1
    assert run(context, root, channels=3).input.channels == 3
    fill(root / "b" / "more", 1)
    assert run(context, root).input.channels == 3
    assert pixels(run(context, root, channels=1, size=12), "train").shape[1:] == (12, 12, 1)


def test_mean_and_std_are_the_training_split_s(tmp_path, context):
    dataset = run(context, two_classes(tmp_path / "set"))
    values = pixels(dataset, "train").astype(np.float64).reshape(-1, 3) / 255
    np.testing.assert_allclose(dataset.input.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(dataset.input.std, values.std(0), rtol=1e-12)


def test_a_channel_without_contrast_is_not_divided_by_zero(tmp_path, context):
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(5):
            image = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
            image[..., 2] = 255
            Image.fromarray(image).save(tmp_path / "set" / name / f"{i}.png")
    spec = run(context, tmp_path / "set").input
    assert (spec.mean[2], spec.std[2]) == (1.0, 1 / 255)


def test_mean_and_std_of_known_levels():
    levels = np.zeros((1, 256), np.int64)
    levels[0, [0, 255]] = 3, 1
    mean, std = mean_and_std(levels)
    assert mean == (0.25,)
    assert std == pytest.approx((np.sqrt(3) / 4,))


# Digest and reuse


@pytest.mark.parametrize("limit", [4096, 0])
def test_digest_is_of_the_content(tmp_path, context, limit):
    root = two_classes(tmp_path / "set")
    first = run(context, root, memory_limit_mb=limit)
    renamed = root.rename(tmp_path / "renamed")
    second = run(context, renamed, memory_limit_mb=limit)
    assert first.digest == second.digest == second.identity
    with Image.open(renamed / "test/a/000.png") as image:
        changed = np.array(image)
    changed[0, 0, 0] ^= 1
    Image.fromarray(changed).save(renamed / "test/a/000.png")
    assert run(context, renamed, memory_limit_mb=limit).digest != first.digest
    assert [outcome.reused for outcome in context.store.outcomes] == [False] * 3


@pytest.mark.parametrize(("limit", "noticed"), [(4096, False), (0, True)])
def test_another_decoder_is_another_streamed_set(tmp_path, context, monkeypatch, limit, noticed):
    """Stored pixels speak for themselves, files do not."""
    root = two_classes(tmp_path / "set")
    first = run(context, root, memory_limit_mb=limit)
    monkeypatch.setattr("PIL.__version__", "0.0")
    second = run(context, root, memory_limit_mb=limit)
    assert (first.digest != second.digest) is noticed
    assert not context.store.outcomes[-1].reused


def test_digest_knows_the_class_names(tmp_path, context):
    root = tree(tmp_path / "set", {"a": 5, "b": 5})
    first = run(context, root)
    (root / "b").rename(root / "c")
    assert run(context, root).digest != first.digest


def test_second_run_reads_no_image(tmp_path, context, monkeypatch):
    root = two_classes(tmp_path / "set")
    first = run(context, root)
    monkeypatch.setattr(Image, "open", None)
    assert run(context, root) == first
    assert context.store.outcomes[-1].reused


def test_import_without_torch():
    modules = ", ".join(f"pipeline.sources.{name}" for name in sources.names())
    code = f"import sys, pipeline.stages.data, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_given_normalisation_becomes_the_contract(tmp_path, context):
    two_classes(tmp_path / "set")
    given = Data(
        source="folder", folder=tmp_path / "set", channels=3, mean=(0.1, 0.2, 0.3), std=(1, 2, 3)
    )
    spec = given.run(context).input
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


def test_normalisation_that_does_not_fit_is_refused(tmp_path, context):
    root = two_classes(tmp_path / "set")
    # Found first: reading this one to its end would be another error.
    broken = root / "train/a/000.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    fails(context, root, "1 means and 1 stds for 3 channels", mean=(0.1,), std=(1,))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"mean": (0.5,)}, "go together"),
        ({"mean": (0.5,), "std": (1, 1, 1)}, "1 means and 3 stds for 1 or 3 channels"),
        ({"mean": (0.5, 0.5), "std": (1, 1)}, "2 means and 2 stds for 1 or 3 channels"),
        ({"channels": 1, "mean": (0.5,) * 3, "std": (1,) * 3}, "3 means and 3 stds for 1 channels"),
    ],
)
def test_normalisation_that_fits_nothing_is_refused_at_once(wrong, words):
    with pytest.raises(ValidationError, match=words):
        Data(**wrong)
