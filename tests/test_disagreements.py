"""Images on which networks disagree: which are shown, in what order, and how small they are."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from pipeline import disagreements
from pipeline.disagreements import Answers, data_url, find
from pipeline.images import open_split
from tests.small_run import SmallRun

CLASSES = 3


def logits(named, margins):
    """Logits that name these classes, each by its margin before the next."""
    found = np.zeros((len(named), CLASSES), np.float32)
    found[np.arange(len(named)), named] = margins
    return found


def shown(found):
    assert found is not None
    return [each.index for each in found.shown]


@pytest.fixture
def said():
    """Ten images: int8 differs on 1, 4 and 7, the teacher on 2, 3 and 4."""
    student = logits([0] * 10, [1, 2, 3, 9, 5, 1, 1, 2, 1, 1])
    int8, teacher = student.copy(), student.copy()
    int8[[1, 4, 7], 1], teacher[[2, 3, 4], 2] = 20, 20
    return {"teacher": Answers(teacher), "student": Answers(student), "int8": Answers(int8)}


TRUTH = np.array([0, 0, 1, 0, 1, 0, 0, 0, 0, 0])


def test_int8_comes_before_the_teacher_and_the_surest_first(said):
    found = find(said, TRUTH, "onnx int8", None)
    # 4 is int8's, though the teacher differs on it too; 1 and 7 have the same margin
    assert shown(found) == [4, 1, 7, 3, 2]
    assert found is not None and found.n == 5 and found.int8 == "onnx int8"
    first = found.shown[0]
    assert first.truth == 1 and first.image is None
    assert {name: each.named for name, each in first.said.items()} == {
        **{"teacher": 2, "student": 0, "int8": 1}
    }
    e = np.exp
    assert first.said["student"].confidence == pytest.approx(e(5) / (e(5) + 2), rel=1e-6)
    assert find(said, TRUTH, "onnx int8", None) == found


def test_no_more_than_a_dozen_are_shown():
    rng = np.random.default_rng(0)
    student = logits(np.zeros(200, int), rng.random(200) + 0.1)
    int8 = logits(np.ones(200, int), np.full(200, 1.0))
    found = find(
        {"student": Answers(student), "int8": Answers(int8)}, np.zeros(200, int), "x", None
    )
    assert found is not None and found.n == 200
    assert shown(found) == np.argsort(-student[:, 0], kind="stable")[:12].tolist()


def test_without_teacher_or_int8_the_other_is_left(said):
    assert shown(find({n: said[n] for n in ("student", "int8")}, TRUTH, "x", None)) == [4, 1, 7]
    alone = find({n: said[n] for n in ("teacher", "student")}, TRUTH, None, None)
    assert shown(alone) == [3, 4, 2] and alone is not None and alone.int8 is None
    assert find({"student": said["student"]}, TRUTH, None, None) is None
    assert find({"teacher": said["teacher"], "int8": said["int8"]}, TRUTH, "x", None) is None
    same = find({"student": said["student"], "int8": said["student"]}, TRUTH, "x", None)
    assert same is not None and same.n == 0 and not same.shown


def test_probabilities_are_told_as_they_are(said):
    shares = np.full((10, CLASSES), 0.2)
    shares[:, 1] = 0.6
    found = find(said | {"int8": Answers(shares, "probabilities")}, TRUTH, "x", None)
    assert found is not None and found.shown[0].said["int8"].confidence == 0.6


def test_an_answer_that_is_no_number_has_no_confidence(said):
    said["int8"].values[4] = np.nan
    found = find(said, TRUTH, "x", None)
    assert found is not None
    told = {each.index: each.said["int8"].confidence for each in found.shown}
    assert told[1] is not None and told.get(4) is None


# ---- the images themselves ----


def opened(url):
    kind, data = url.removeprefix("data:image/").split(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        image.load()
        assert (image.format or "").lower() == kind
        return image


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_keep_every_pixel(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, channels), np.uint8)
    image = opened(data_url(pixels))
    assert image.format == "PNG"
    assert (np.asarray(image).reshape(28, 28, channels) == pixels).all()


@pytest.mark.parametrize("size", [28, 32, 33, 96, 224])
def test_a_dozen_stay_below_150_kilobytes(size):
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    assert 12 * len(data_url(noise)) < 150_000
    assert max(opened(data_url(noise)).size) == min(size, disagreements.SIDE)


def test_a_large_image_still_looks_like_itself():
    ramp = np.linspace(0, 255, 224).astype(np.uint8)
    pixels = np.broadcast_to(ramp[None, :, None], (224, 224, 1))
    image = np.asarray(opened(data_url(pixels)), dtype=float)
    assert image.shape == (96, 96)
    assert np.abs(image - np.linspace(0, 255, 96)).max() < 6


@pytest.fixture
def streamed(tmp_path):
    """Test images in files of which only some are there, and answers that differ on those."""
    run = SmallRun(tmp_path, n=40)
    here = [3, 11, 20]
    paths = [tmp_path / f"{at}.png" for at in range(40)]
    for at in here:
        Image.fromarray(np.full((8, 8), 10 * at, np.uint8)).save(paths[at])
    (tmp_path / "files.txt").write_text("".join(f'"{path}"\n' for path in paths))
    test = run.dataset.test.model_copy(update={"images": None, "files": "files.txt"})
    dataset = run.dataset.model_copy(update={"test": test})
    student = logits(np.zeros(40, int), np.full(40, 2.0))
    int8 = student.copy()
    int8[here, 1] = 9
    said = {"student": Answers(student), "int8": Answers(int8)}
    return said, run.truth, open_split(dataset, "test"), paths


def test_only_what_is_shown_is_decoded(streamed):
    said, truth, images, _ = streamed
    found = find(said, truth, "x", images)
    assert shown(found) == [3, 11, 20] and found is not None
    for each in found.shown:
        assert each.image and (np.asarray(opened(each.image)) == 10 * each.index).all()


def test_an_image_that_has_gone_costs_only_its_picture(streamed):
    said, truth, images, paths = streamed
    paths[11].unlink()
    found = find(said, truth, "x", images)
    assert shown(found) == [3, 11, 20] and found is not None
    assert [each.index for each in found.shown if each.image is None] == [11]
