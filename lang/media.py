"""Pictures and films in a turn: from a path, bytes or an image object to a node with the bytes of a file.

Knows: the first bytes of common file formats. Must not know: backends, which models can see. Nothing is downloaded.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
from pathlib import Path
from typing import Any

from branchwork.lang.ir import Image, Video

_IMAGES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)
_IMAGE_NAMES = "PNG, JPEG, GIF, WebP, BMP, TIFF"
_VIDEO_NAMES = "MP4, QuickTime, WebM, Matroska, AVI"
_HEAD = 64  # bytes that tell a format


def image(source: Any) -> Image:
    """A picture in a turn: a path, the bytes of a file, a data: URL, or an image object with PIL's save(file, format).

    The format is read from the bytes. Raises ValueError for bytes of no known format and for a web address (nothing is
    downloaded), FileNotFoundError, TypeError for anything else.
    """
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        data = _bytes_of(source, "image")
    elif callable(getattr(source, "save", None)):
        buffer = io.BytesIO()
        source.save(buffer, format="PNG")
        data = buffer.getvalue()
    else:
        raise TypeError(f"image takes a path, bytes or an image object, got {type(source).__name__}")
    media = _image_type(data[:_HEAD])
    if not media:
        raise ValueError(f"{_told(source)} is no picture that can be read here; use one of {_IMAGE_NAMES}")
    return Image(data, media)


def video(source: str | os.PathLike[str] | bytes, num_frames: int) -> Video:
    """A film in a turn, of which `num_frames` pictures are looked at: a path, the bytes of a file, or a data: URL.

    Raises ValueError for bytes of no known format, a web address, or no frames; FileNotFoundError; TypeError.
    """
    if isinstance(num_frames, bool) or not isinstance(num_frames, int):
        raise TypeError(f"num_frames must be a whole number, got {num_frames!r}")
    if num_frames < 1:
        raise ValueError(f"num_frames={num_frames} looks at nothing; give at least 1")
    if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        raise TypeError(f"video takes a path or bytes, got {type(source).__name__}")
    data = _bytes_of(source, "video")
    media = _video_type(data[:_HEAD])
    if not media:
        raise ValueError(f"{_told(source)} is no film that can be read here; use one of {_VIDEO_NAMES}")
    return Video(data, media, num_frames)


def _bytes_of(source: str | os.PathLike[str] | bytes | bytearray | memoryview, kind: str) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    text = os.fspath(source)
    scheme = text.partition(":")[0].lower()
    if scheme in ("http", "https", "ftp", "s3", "gs"):
        raise ValueError(f"nothing is downloaded here: fetch {text!r} yourself and give {kind}() its bytes or its path")
    if scheme == "data":
        head, comma, body = text.partition(",")
        try:
            if not comma or not head.endswith(";base64"):
                raise ValueError("it has no ;base64 part")
            return base64.b64decode(body, validate=True)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"{_told(text)} cannot be decoded: {error}; write data:TYPE;base64,BYTES") from None
    return Path(text).read_bytes()


def _image_type(head: bytes) -> str:
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return next((media for magic, media in _IMAGES if head.startswith(magic)), "")


def _video_type(head: bytes) -> str:
    if head[4:8] == b"ftyp":
        return "video/quicktime" if head[8:10] == b"qt" else "video/mp4"
    if head[:4] == b"\x1aE\xdf\xa3":  # EBML, the container of both
        return "video/webm" if b"webm" in head else "video/x-matroska"
    return "video/x-msvideo" if head[:4] == b"RIFF" and head[8:12] == b"AVI " else ""


def _told(source: Any) -> str:
    """A source in an error message, cut short."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes beginning {bytes(source[:8])!r}"
    text = str(source)
    return repr(text if len(text) <= 100 else text[:100] + "...")
