"""Pictures of all kinds become grey levels; what is no picture is told in a line."""

import functools
import io
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from jaxmnist.errors import UserError
from jaxmnist.photos import pictures

RAMP_HW = np.linspace(0, 255, 40 * 30).reshape(30, 40).round().astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "ppm", "webp", "jpg", "jp2"])
def test_formats(suffix: str, tmp_path: Path):
    file = tmp_path / f"picture.{suffix}"
    Image.fromarray(RAMP_HW).convert("RGB").save(file)
    grey_HW = pictures.read(file)
    assert grey_HW.dtype == np.float32
    np.testing.assert_allclose(grey_HW, RAMP_HW, atol=5 if suffix in ("jpg", "webp") else 1)


SUFFIXES = {"CMYK": "jpg", "I": "ppm", "F": "pfm"}  # of what PNG has not


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA", "CMYK", "I;16", "I", "F"])
def test_modes(mode: str, tmp_path: Path):
    file = tmp_path / f"picture.{SUFFIXES.get(mode, 'png')}"
    levels = RAMP_HW
    if mode in ("I;16", "I"):
        levels = 100 + RAMP_HW // 5  # neither black nor white, and it stays so
        picture = Image.fromarray(levels.astype(np.uint16) * 257).convert(mode)
    elif mode == "1":
        levels = np.where(RAMP_HW > 127, 255, 0)
        picture = Image.fromarray(levels.astype(np.uint8)).convert("1")
    else:
        picture = Image.fromarray(RAMP_HW).convert(mode)
    picture.save(file)
    np.testing.assert_allclose(pictures.read(str(file)), levels, atol=5)


@pytest.mark.parametrize("full", [1023, 4095, 16383, 65535])
def test_fewer_bits_than_a_file_has_room_for(full: int, tmp_path: Path):
    """As cameras and scanners leave them; the lightest is a little below the highest level."""
    levels = (RAMP_HW / RAMP_HW.max() * 0.9 * full).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.mode.startswith("I")
    grey_HW = pictures.read(str(tmp_path / "picture.png"))
    np.testing.assert_allclose(grey_HW, RAMP_HW / RAMP_HW.max() * 0.9 * 255, atol=1)


@pytest.mark.parametrize(("pen", "paper"), [(0, 255), (255, 0)])
def test_transparent_paper_is_unlike_the_ink(pen: int, paper: int, tmp_path: Path):
    drawn = np.zeros((20, 20, 4), np.uint8)
    drawn[5:15, 8:12] = (pen, pen, pen, 255)
    Image.fromarray(drawn).save(tmp_path / "picture.png")
    grey_HW = pictures.read(str(tmp_path / "picture.png"))
    assert grey_HW[10, 10] == pen
    assert grey_HW[0, 0] == paper


@pytest.mark.parametrize("sheet", [(4, 36, 4, 56), (8, 32, 20, 40)])  # most of it, a fifth of it
def test_a_sheet_that_was_cut_out_goes_on(sheet: tuple[int, int, int, int], tmp_path: Path):
    """What is transparent around it is no frame."""
    top, bottom, left, right = sheet
    cut_out = np.zeros((40, 60, 4), np.uint8)
    cut_out[top:bottom, left:right] = (230, 230, 230, 255)
    cut_out[10:30, 28:32] = (30, 30, 30, 255)
    Image.fromarray(cut_out).save(tmp_path / "picture.png")
    grey_HW = pictures.read(str(tmp_path / "picture.png"))
    expected_HW = np.full((40, 60), 230)
    expected_HW[10:30, 28:32] = 30
    np.testing.assert_allclose(grey_HW, expected_HW, atol=1)


@pytest.mark.parametrize(("pen", "paper"), [(20, 255), (240, 0)])
def test_ink_that_fills_its_picture_is_no_sheet(pen: int, paper: int, tmp_path: Path):
    """As a 1 does that is trimmed to its own size."""
    drawn = np.zeros((40, 12, 4), np.uint8)
    drawn[1:39, 2:10] = (pen, pen, pen, 255)
    drawn[1:39, 2] = (pen, pen, pen, 90)  # soft edges
    Image.fromarray(drawn).save(tmp_path / "picture.png")
    grey_HW = pictures.read(str(tmp_path / "picture.png"))
    assert grey_HW[0, 0] == paper
    assert grey_HW[20, 6] == pen


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage!!", b"Exif\0\0MM", b"Exif\0\0II*\0"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_damaged_notes_of_the_camera_do_no_harm(suffix: str, exif: bytes, tmp_path: Path):
    file = tmp_path / f"picture.{suffix}"
    Image.fromarray(RAMP_HW).convert("RGB").save(file, exif=exif, dpi=(72, 72))
    np.testing.assert_allclose(pictures.read(str(file)), RAMP_HW, atol=5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("Raw profile type exif", "\nexif\n 9\nno digits"), ("xmp", "text where bytes belong")],
)
def test_damaged_notes_in_a_text_do_no_harm(name: str, value: str, tmp_path: Path):
    notes = PngImagePlugin.PngInfo()
    notes.add_text(name, value)
    Image.fromarray(RAMP_HW).save(tmp_path / "picture.png", pnginfo=notes)
    np.testing.assert_array_equal(pictures.read(str(tmp_path / "picture.png")), RAMP_HW)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter, say notes that are whole
    Image.fromarray(RAMP_HW).save(tmp_path / "turned.png", pnginfo=notes, exif=exif)
    np.testing.assert_array_equal(
        pictures.read(str(tmp_path / "turned.png")), np.rot90(RAMP_HW, -1)
    )


def test_turned_even_where_the_notes_cannot_be_written_anew(tmp_path: Path):
    """Where the width is of a kind that Pillow reads and does not write."""
    entries = [(0x0100, 1, 1, 0), (0x0112, 3, 1, 6)]  # a width; turned by a quarter
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)
    Image.fromarray(RAMP_HW).save(tmp_path / "picture.png", exif=exif)
    np.testing.assert_array_equal(
        pictures.read(str(tmp_path / "picture.png")), np.rot90(RAMP_HW, -1)
    )


def test_the_camera_says_which_way_is_up(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(RAMP_HW).save(tmp_path / "picture.png", exif=exif)
    np.testing.assert_array_equal(
        pictures.read(str(tmp_path / "picture.png")), np.rot90(RAMP_HW, -1)
    )


def test_a_preview_beside_the_photo(tmp_path: Path):
    photo, preview = Image.fromarray(RAMP_HW), Image.new("L", (8, 6))
    photo.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[preview])
    assert pictures.read(str(tmp_path / "photo.jpg")).shape == RAMP_HW.shape


NOISE_HW = np.random.default_rng(0).integers(0, 256, (30, 40), np.uint8)


def png(levels_HW: np.ndarray = RAMP_HW) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(levels_HW).save(stream, "PNG")
    return stream.getvalue()


def animation() -> bytes:
    stream = io.BytesIO()
    frames = [Image.fromarray(RAMP_HW), Image.fromarray(255 - RAMP_HW)]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 400 million pixels."""
    content = bytearray(png())
    content[16:24] = (20_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


BAD = {
    "text": (b"407\n", "is no picture that can be read here: save it as PNG or JPEG"),
    "nothing": (b"", "is no picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no picture"),
    "cut": (png(NOISE_HW)[:600], "cannot be read ("),
    "cut early": (png()[:20], "cannot be read ("),
    "animation": (animation(), "has 2 pictures: save the one that counts"),
    "bomb": (bomb(), "has more than 89 million pixels: scale it down"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("through", ["a file", "standard input"])
def test_what_is_no_picture(
    name: str, through: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    content, words = BAD[name]
    file = tmp_path / "picture.png"
    file.write_bytes(content)
    if through == "standard input":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(UserError) as raised:
        pictures.read(str(file) if through == "a file" else "-")
    assert words in str(raised.value)
    assert str(raised.value).startswith(str(file) if through == "a file" else "standard input")


def test_files_that_are_not_there(tmp_path: Path):
    for file in (tmp_path / "none.png", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot be read"):
            pictures.read(str(file))


@functools.cache
def whole(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(NOISE_HW).save(stream, kind)
    return stream.getvalue()


@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM", "JPEG2000"]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
    st.none() | st.integers(0, 2000),
)
@settings(deadline=None, max_examples=100)
def test_damaged_files_are_read_or_told(kind: str, changes: list[tuple[int, int]], end: int | None):
    content = bytearray(whole(kind)[:end])
    for place, byte in changes:
        if place < len(content):
            content[place] = byte
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "picture")
        file.write_bytes(content)
        try:
            grey_HW = pictures.read(str(file))
        except UserError:  # which is one line
            return
        assert grey_HW.ndim == 2
        assert grey_HW.dtype == np.float32
