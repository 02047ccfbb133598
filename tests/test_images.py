"""Decoding one file, and reading a stored split."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.context import Context
from pipeline.errors import DataError
from pipeline.images import decode, in_order, natural_size, open_split, spread
from pipeline.records import Dataset
from pipeline.stages.data import Data
from pipeline.store import Store

NOISE = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
ROTATED_90_CLOCKWISE = 6
ORIENTATION = 0x112


@pytest.fixture
def save(tmp_path):
    def save(image, name="image.png", **options):
        path = tmp_path / name
        image.save(path, **options)
        return path

    return save


def test_right_size_is_passed_through(save):
    path = save(Image.fromarray(NOISE))
    assert np.array_equal(decode(path, 12, 3), NOISE)


def test_grey_as_grey_and_as_rgb(save):
    path = save(Image.fromarray(NOISE[..., 0]))
    assert np.array_equal(decode(path, 12, 1), NOISE[..., :1])
    assert np.array_equal(decode(path, 12, 3), NOISE[..., [0, 0, 0]])


def test_colour_as_grey_weighs_the_channels(save):
    path = save(Image.fromarray(NOISE))
    expected = NOISE @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(decode(path, 12, 1)[..., 0] - expected).max() <= 0.51


def test_alpha_is_laid_on_white(save):
    alpha = np.random.default_rng(1).integers(0, 256, (12, 12, 1), np.uint8)
    path = save(Image.fromarray(np.concatenate([NOISE, alpha], axis=2)))
    share = alpha / 255
    assert np.abs(decode(path, 12, 3) - (NOISE * share + 255 * (1 - share))).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_with_alpha(save, channels):
    path = save(Image.new("LA", (12, 12), (0, 0)))
    assert (decode(path, 12, channels) == 255).all()


def test_palette_with_transparency(save):
    image = Image.new("P", (12, 12), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 6, 12))
    pixels = decode(save(image, transparency=0), 12, 3)
    assert (pixels[:, :6] == 255).all()
    assert (pixels[:, 6:] == (0, 0, 255)).all()


def test_cmyk(save):
    path = save(Image.new("CMYK", (12, 12), (255, 0, 0, 0)), "image.tif")
    assert (decode(path, 12, 3) == (0, 255, 255)).all()


def test_sixteen_bit_grey_is_scaled(save):
    values = np.linspace(0, 65535, 144).astype(np.uint16).reshape(12, 12)
    pixels = decode(save(Image.fromarray(values)), 12, 1)
    assert np.array_equal(pixels[..., 0], np.rint(values / 257))


def test_one_bit(save):
    bits = NOISE[..., 0] > 127
    assert np.array_equal(decode(save(Image.fromarray(bits)), 12, 1)[..., 0], bits * 255)


@pytest.mark.parametrize("name", ["image.png", "image.jpg", "PHOTO.JPG"])
def test_exif_rotation_turns_the_pixels(save, name):
    stored = np.zeros((16, 16), np.uint8)
    stored[:8, :8] = 255  # white at the top left becomes white at the top right
    exif = Image.Exif()
    exif[ORIENTATION] = ROTATED_90_CLOCKWISE
    pixels = decode(save(Image.fromarray(stored), name, exif=exif), 16, 1)[..., 0]
    assert np.abs(pixels.astype(int) - np.rot90(stored, -1)).max() <= 2


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_costs_nothing(save):
    path = save(Image.fromarray(NOISE), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(decode(path, 12, 3), NOISE)


def test_centre_square_is_kept(save):
    image = Image.new("L", (30, 10), 0)
    image.paste(200, (10, 0, 20, 10))
    assert (decode(save(image), 10, 1) == 200).all()


def test_crop_fraction_keeps_the_centre(save):
    image = Image.new("L", (16, 16), 0)
    image.paste(200, (4, 4, 12, 12))
    path = save(image)
    assert (decode(path, 8, 1, 0.5) == 200).all()
    assert decode(path, 8, 1, 1.0)[0, 0] == 0
    assert decode(path, 16, 1, 0.5).shape == (16, 16, 1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (60_000, 1), (1, 60_000)])
def test_thin_images(save, shape):
    path = save(Image.new("RGB", shape, (10, 20, 30)))
    assert (decode(path, 32, 3, 0.875) == (10, 20, 30)).all()


def test_reduced_decoding_of_a_large_jpeg_changes_little(save):
    ramp = np.add.outer(np.linspace(0, 120, 512), np.linspace(0, 120, 512)).astype(np.uint8)
    jpeg = decode(save(Image.fromarray(ramp), "image.jpg", quality=95), 32, 1)
    png = decode(save(Image.fromarray(ramp)), 32, 1)
    assert np.abs(jpeg.astype(int) - png).max() <= 3


def test_truncated_names_the_file(save):
    path = save(Image.fromarray(NOISE), "half.jpg")
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"unreadable image: .*half\.jpg: image file is truncated"):
        decode(path, 12, 3)


def test_no_image_at_all(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("hello")
    for read in (natural_size, lambda path: decode(path, 8, 1)):
        with pytest.raises(DataError, match=r"text\.png: not an image that Pillow can read"):
            read(path)
    with pytest.raises(DataError, match=r"gone\.png: No such file"):
        decode(tmp_path / "gone.png", 8, 1)


def test_floating_point_is_refused(save):
    path = save(Image.fromarray(np.zeros((8, 8), np.float32)), "image.tif")
    with pytest.raises(DataError, match="floating-point"):
        decode(path, 8, 1)


def test_decompression_bomb(save):
    path = save(Image.new("L", (8, 8)))
    header = bytearray(path.read_bytes())
    header[16:24] = struct.pack(">II", 60_000, 60_000)
    header[29:33] = struct.pack(">I", zlib.crc32(bytes(header[12:29])))
    path.write_bytes(header)
    with pytest.raises(DataError, match=r"image too large: .*image\.png"):
        decode(path, 8, 1)


def test_natural_size(save):
    assert natural_size(save(Image.new("L", (5, 7)))) == (5, 7, True)
    assert natural_size(save(Image.new("RGB", (5, 7)))) == (5, 7, False)


def test_in_order_keeps_the_order_and_does_not_run_ahead():
    started = []
    results = in_order(lambda i: started.append(i) or i, range(100), threads=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(started) <= 6
    assert list(results) == list(range(3, 100))


@pytest.fixture
def stored_and_streamed(tmp_path) -> tuple[Dataset, Dataset]:
    rng = np.random.default_rng(0)
    for split, n in (("train", 20), ("test", 7)):
        for name in ("a", "b"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (9, 11, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / split / name / f"{i}.png")
    context = Context(store=Store(tmp_path / "store"))
    return (
        Data(source="folder", folder=tmp_path / "set").run(context),
        Data(source="folder", folder=tmp_path / "set", memory_limit_mb=0).run(context),
    )


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_stored_and_streamed_give_the_same(stored_and_streamed, split):
    stored, streamed = (open_split(dataset, split) for dataset in stored_and_streamed)
    assert (stored.resident, streamed.resident) == (True, False)
    assert len(stored) == len(streamed)
    assert np.array_equal(stored.labels, streamed.labels)
    for (images, labels), (others, same) in zip(
        stored.batches(3), streamed.batches(3), strict=True
    ):
        assert images.shape[1:] == (9, 9, 3)
        assert len(images) == len(labels)
        assert np.array_equal(images, others)
        assert np.array_equal(labels, same)


def test_indexing(stored_and_streamed):
    for dataset in stored_and_streamed:
        images = open_split(dataset, "train")
        every = images[:]
        assert every.shape == (len(images), 9, 9, 3)
        assert every.dtype == np.uint8
        order = np.array([3, 0, 3, -1])
        assert np.array_equal(images[order], every[order])
        assert np.array_equal(np.concatenate([x for x, _ in images.batches(5)]), every)
        every[:] = 0  # the caller's own
        assert images[:1].any()


def test_streamed_image_that_is_gone(stored_and_streamed):
    images = open_split(stored_and_streamed[1], "test")
    folder = Path(stored_and_streamed[1].folder, "test-files.txt")
    for line in folder.read_text().splitlines():
        Path(line.strip('"')).unlink()
    with pytest.raises(DataError, match="No such file"):
        images[:3]


def test_a_box_is_cut_from_the_centre_square(tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[10:30, 30:50] = 200  # within the centre square, columns 20 to 60
    Image.fromarray(pixels).save(tmp_path / "a.png")
    whole = decode(tmp_path / "a.png", 10, 3, box=(0, 0, 1, 1))
    np.testing.assert_array_equal(whole, decode(tmp_path / "a.png", 10, 3))
    part = decode(tmp_path / "a.png", 10, 3, crop_fraction=0.5, box=(0.4, 0.4, 0.2, 0.2))
    assert (part == 200).all()
    corner = decode(tmp_path / "a.png", 10, 3, box=(0.8, 0.8, 0.2, 0.2))
    assert not corner.any()


def test_spread_reaches_every_class_of_a_sorted_split():
    labels = np.repeat(np.arange(10), 100)
    rows = spread(50, len(labels))
    assert len(set(rows.tolist())) == 50 and rows[0] == 0 and rows[-1] == 999
    assert np.bincount(labels[rows]).tolist() == [5] * 10
    assert spread(None, 7).tolist() == spread(9, 7).tolist() == list(range(7))
