"""Every kind of image file becomes the RGB picture that a viewer shows, or an error that names it."""

import errno
import io
import zlib

import numpy as np
import PIL
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qkvit.data import BadImageError, SourceUnreachableError, decode_image


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(image: Image.Image, kind: str = "png", **options) -> np.ndarray:
    result = decode_image(encoded(image, kind, **options))
    assert result.mode == "RGB"
    return np.asarray(result)


def test_rgb_is_unchanged():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(decoded(Image.fromarray(pixels)), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    result = decoded(Image.fromarray(pixels), exif=exif.tobytes())
    assert result.shape == ((4, 6, 3) if orientation < 5 else (6, 4, 3))
    assert result[corner[orientation]].tolist() == [255, 255, 255]


def test_broken_exif_does_not_spoil_the_picture():
    pixels = np.full((4, 6, 3), 9, dtype=np.uint8)
    assert np.array_equal(decoded(Image.fromarray(pixels), exif=b"Exif\x00\x00nonsense"), pixels)


def test_cmyk():
    assert decoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "tiff")[0, 0].tolist() == [0, 255, 255]


def test_palette():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert decoded(image).tolist() == [[[10, 20, 30], [200, 100, 50]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_transparent_is_white(mode):
    options = {}
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (1, 1), 0)
    else:  # one colour of the file is declared transparent
        image = Image.new(mode, (1, 1), 0)
        options = {"transparency": (0, 0, 0) if mode == "RGB" else 0}
    assert decoded(image, **options).tolist() == [[[255, 255, 255]]]


def test_what_is_half_transparent_is_mixed_with_white():
    assert decoded(Image.new("RGBA", (1, 1), (255, 0, 0, 128))).tolist() == [[[255, 127, 127]]]


@given(st.lists(st.integers(0, 65_535), min_size=1, max_size=8))
def test_16_bit_grey_is_scaled_and_not_clipped(values):
    image = Image.fromarray(np.array([values], dtype=np.uint16))
    expected = np.rint(np.array(values) / 257).astype(np.uint8)
    assert np.array_equal(decoded(image)[0, :, 0], expected)


def test_grey_in_floating_point():
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert decoded(image, "tiff")[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[70_000]], dtype=np.int32),
        np.array([[-1]], dtype=np.int32),
        np.array([[2.0]], dtype=np.float32),
        np.array([[np.nan]], dtype=np.float32),
    ],
)
def test_grey_whose_white_is_not_known_is_refused(values):
    with pytest.raises(BadImageError, match="scale from 0 to"):
        decode_image(encoded(Image.fromarray(values), "tiff"))


@pytest.mark.parametrize("mode", ["1", "L", "YCbCr", "LAB", "HSV"])
def test_every_other_mode_becomes_rgb(mode):
    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow before 13 cannot read the YCbCr files that it writes")
    kind = "tiff" if mode in ("YCbCr", "LAB") else "png"
    image = Image.new("RGB", (3, 3), "white") if mode == "HSV" else Image.new(mode, (3, 3))
    assert decoded(image, kind).shape == (3, 3, 3)


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_the_first_of_several_frames(kind):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "webp" else {}
    result = decoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert result[0, 0].tolist() == [255, 0, 0]


def test_one_pixel():
    assert decoded(Image.new("RGB", (1, 1), "blue")).tolist() == [[[0, 0, 255]]]


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "tiff", "webp"])
def test_a_truncated_file_is_refused_and_named(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(pixels), kind)
    with pytest.raises(BadImageError, match=r"^a\.file: ") as caught:
        decode_image(whole[: len(whole) // 2], "a.file")
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_image_are_refused(content):
    with pytest.raises(BadImageError):
        decode_image(content, "a.file")


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_gives_a_picture_or_a_refusal(place, change):
    content = bytearray(encoded(Image.new("RGB", (9, 7), "red"), "jpeg"))
    content[place % len(content)] ^= change
    try:
        assert decode_image(bytes(content), "a.file").mode == "RGB"
    except BadImageError as error:
        assert str(error).startswith("a.file: ")  # noqa: PT017 - either is right


def test_a_missing_file_is_refused_and_named(tmp_path):
    with pytest.raises(BadImageError, match=r"gone\.png: .*no such file"):
        decode_image(tmp_path / "gone.png")


@pytest.mark.parametrize("side", [10_001, 20_000])  # below and above the size at which Pillow itself refuses
def test_a_decompression_bomb_is_refused_from_its_header(side):
    content = bytearray(encoded(Image.new("1", (8, 8))))
    content[16:24] = side.to_bytes(4, "big") * 2  # width and height in a PNG's first chunk
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    with pytest.raises(BadImageError, match=r"a\.png: it has .* pixels"):
        decode_image(bytes(content), "a.png")


def test_the_most_pixels_can_be_set():
    content = encoded(Image.new("RGB", (10, 10)))
    decode_image(content, max_pixels=100)
    with pytest.raises(BadImageError, match="10 x 10 pixels, more than 99"):
        decode_image(content, max_pixels=99)


def test_a_strip_that_resizing_would_blow_up_is_refused():
    decode_image(encoded(Image.new("RGB", (100, 1))))
    with pytest.raises(BadImageError, match="101 x 1 pixels"):
        decode_image(encoded(Image.new("RGB", (101, 1))))


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ETIMEDOUT, SourceUnreachableError), (errno.ESTALE, SourceUnreachableError), (errno.EACCES, BadImageError)],
)
def test_a_file_system_that_does_not_answer_is_no_bad_image(monkeypatch, raises_sentence, number, expected):
    def fail(*args, **kwargs):
        raise OSError(number, "no answer")

    monkeypatch.setattr(Image, "open", fail)
    with raises_sentence(expected, "far/a.png"):
        decode_image("far/a.png")
