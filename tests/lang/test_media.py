"""A picture or film becomes a node with its bytes and its type, or a clear error at the line that asked for it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest

import branchwork as bw
from branchwork.lang.errors import CapabilityError
from branchwork.lang.ir import Image, RoleBegin, Video
from branchwork.lang.media import image, video

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
HEADS = {
    "image/png": PNG,
    "image/jpeg": b"\xff\xd8\xff\xe0" + bytes(20),
    "image/gif": b"GIF89a" + bytes(20),
    "image/webp": b"RIFF\x10\x00\x00\x00WEBPVP8 ",
    "image/bmp": b"BM" + bytes(20),
    "image/tiff": b"II*\x00" + bytes(20),
}
FILMS = {
    "video/mp4": b"\x00\x00\x00\x18ftypisom" + bytes(20),
    "video/quicktime": b"\x00\x00\x00\x14ftypqt  " + bytes(20),
    "video/webm": b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81\x01B\xf2\x81\x04B\xf3\x81\x08B\x82\x84webm",
    "video/x-matroska": b"\x1aE\xdf\xa3\xa3B\x86\x81\x01B\xf7\x81\x01B\xf2\x81\x04B\xf3\x81\x08B\x82\x88matroska",
    "video/x-msvideo": b"RIFF\x10\x00\x00\x00AVI LIST",
}


@pytest.mark.parametrize("media", HEADS)
def test_the_type_of_a_picture_is_read_from_its_bytes(media: str, tmp_path: Path) -> None:
    file = tmp_path / "picture.dat"  # a name that says nothing
    file.write_bytes(HEADS[media])
    for source in (HEADS[media], bytearray(HEADS[media]), file, str(file)):
        assert image(source) == Image(HEADS[media], media)


@pytest.mark.parametrize("media", FILMS)
def test_the_type_of_a_film_is_read_from_its_bytes(media: str, tmp_path: Path) -> None:
    file = tmp_path / "film"
    file.write_bytes(FILMS[media])
    assert video(str(file), 8) == video(FILMS[media], num_frames=8) == Video(FILMS[media], media, 8)


def test_an_image_object_is_saved_as_png() -> None:
    class Drawn:
        def save(self, file: io.BytesIO, format: str) -> None:
            file.write(PNG if format == "PNG" else b"")

    assert image(Drawn()) == Image(PNG, "image/png")


def test_a_data_address_carries_its_bytes() -> None:
    assert image("data:image/png;base64," + base64.b64encode(PNG).decode()) == Image(PNG, "image/png")


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("https://example.org/cat.png", ValueError, "nothing is downloaded"),
        (b"plain text, no picture", ValueError, "22 bytes beginning b'plain te'"),
        (b"", ValueError, "no picture"),
        ("no/such/file.png", FileNotFoundError, "no/such/file.png"),
        ("data:image/png;base64,***", ValueError, "cannot be decoded"),
        ("data:image/png,abc", ValueError, "no ;base64"),
        (3, TypeError, "got int"),
    ],
)
def test_what_is_no_picture_is_an_error_that_says_what_to_do(source: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words.replace("*", r"\*")):
        image(source)


def test_a_film_needs_frames_to_look_at() -> None:
    film = FILMS["video/mp4"]
    with pytest.raises(ValueError, match="at least 1"):
        video(film, 0)
    with pytest.raises(TypeError, match="whole number"):
        video(film, 2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no film"):
        video(PNG, 4)


def test_pictures_stand_in_expressions_like_text() -> None:
    turn = bw.user("Look: " + image(PNG) + " What is it?")
    assert isinstance(turn.items[0], RoleBegin) and turn.items[2] == Image(PNG, "image/png")


def test_a_text_model_refuses_a_picture_at_its_line() -> None:
    def body(s: Any) -> None:
        s += bw.user(image(PNG) + "What is it?")
        raise AssertionError("the line above was let through")

    with pytest.raises(CapabilityError, match="'scripted' reads text only; it cannot see this image"):
        bw.function(body).run(backend=bw.ScriptedBackend())
