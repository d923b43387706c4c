"""Pictures: PNG, JPEG, TIFF and WebP, decoded once to see that they are whole. The bytes go on as they came."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator

from catena.data.formats.pieces import Piece, Row, Source, Unreadable


def read_picture(source: Source) -> Iterator[Piece]:
    """Yield a picture as one row, with width and height in pixels, mode (`RGB`, `L`, ...) and number of frames."""
    from PIL import Image

    body = source.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(body), formats=[source.format.name]) as picture:
                frames = int(getattr(picture, "n_frames", 1))
                width, height = picture.size
                if width * height * frames > source.limits.pixels:
                    raise Unreadable("too_large", f"{width} x {height} pixels, {frames} frames")
                mode = picture.mode
                for frame in range(frames):
                    picture.seek(frame)
                    picture.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise Unreadable("damaged", f"{type(error).__name__}: {error}"[:300]) from error
    yield Row(body, {"width": width, "height": height, "mode": mode, "frames": frames})
