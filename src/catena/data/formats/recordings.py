"""Sound and video: WAV, FLAC, MP3 and MP4, by FFmpeg's libraries (PyAV). The bytes go on as they came.

The demuxer is chosen by us and never by the file: FFmpeg would also open playlists that name other files and addresses.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from catena.data.formats.pieces import Piece, Row, Source, Unreadable

DEMUXERS = {"wav": "wav", "flac": "flac", "mp3": "mp3", "mp4": "mov"}
UNKNOWN = 0xFFFF_FF00
"""A size about here in a header: who wrote the file did not know how long it would get."""
WHOLE = 0.9
"""A file whose packets end before this share of the duration in its header was cut off."""


def read_recording(source: Source) -> Iterator[Piece]:
    """Yield a recording as one row: seconds, codec, sample rate in Hz and channels; size and frames a second."""
    import av

    body = source.read_bytes()
    if source.format.name == "wav":
        _is_whole(body)
    try:
        with av.open(io.BytesIO(body), format=DEMUXERS[source.format.name]) as container:
            facts = _facts(container)
            ended = _end(container)
    except (av.FFmpegError, ValueError, ArithmeticError) as error:
        raise Unreadable("damaged", f"{type(error).__name__}: {error}"[:300]) from error
    if facts["seconds"] and ended < WHOLE * facts["seconds"]:
        raise Unreadable("damaged", f"it ends after {ended:.1f} of {facts['seconds']:.1f} seconds")
    yield Row(body, facts)


def _is_whole(body: bytes) -> None:
    """Raise where a RIFF file is shorter than its header says; FFmpeg would take what is there for all of it."""
    said = int.from_bytes(body[4:8], "little") + 8
    if len(body) < said < UNKNOWN:
        raise Unreadable("damaged", f"{len(body)} of {said} bytes")


def _facts(container: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"seconds": round(container.duration / 1_000_000, 3) if container.duration else 0.0}
    for stream in container.streams:
        if stream.type == "audio" and "audio_codec" not in facts:
            facts |= {"audio_codec": stream.codec_context.name, "rate": stream.rate, "channels": stream.channels}
        elif stream.type == "video" and "video_codec" not in facts:
            facts |= {
                "video_codec": stream.codec_context.name,
                "width": stream.codec_context.width,
                "height": stream.codec_context.height,
                "frames_per_second": round(float(stream.average_rate or 0), 3),
            }
    if "audio_codec" not in facts and "video_codec" not in facts:
        raise Unreadable("damaged", "there is neither sound nor picture in it")
    return facts


def _end(container: Any) -> float:
    """Go through all packets and decode one; returns where the last of them ends, in seconds."""
    ended, decoded = 0.0, False
    for packet in container.demux():
        if packet.pts is not None and packet.time_base is not None:
            ended = max(ended, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if not decoded and packet.size:
            decoded = bool(packet.decode())
    return ended
