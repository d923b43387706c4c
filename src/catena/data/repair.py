"""`data.repair`: text that was decoded, copied or escaped wrongly becomes what its writer wrote.

Line ends, mojibake (`â€™` back to ’), lone surrogates, control characters, invisible characters inside words, NFC,
white space. Letters are never converted: full width, traditional Han, ligatures and curly quotes stay as they are.
Repairing twice changes nothing more. Mojibake is ftfy's work (Speer 2019, 6.3): it undoes a wrong decoding only where
the line is improbable as it stands and the result is not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace

from catena.core.config import Config
from catena.core.errors import DataError
from catena.core.sample import Sample
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion
from catena.data.decode import LINE_END
from catena.data.privacy import map_texts
from catena.data.shards import Outcome, map_rows, write_rows

TERMINAL_ESCAPE = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")
# C0 and C1 without tab and line ends, the deprecated format characters, and the interlinear marks.
CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u206a-\u206f\ufff9-\ufffb]")
SURROGATE = re.compile("[\ud800-\udfff]")
SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
BYTE_ORDER_MARK = "\ufeff"
# Between letters these are seen by no reader, and cut the word for every program. A soft hyphen may stand there too.
# The space of no width separates words in the scripts of South East Asia, and the joiners shape Arabic, Indic scripts
# and emoji: those keep them.
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaa7f"
_JOINED = "\u0600-\u08ff\u0900-\u0dff\u1000-\u109f\u1780-\u18af\ua840-\ua87f\ufb50-\ufdff\ufe70-\ufefe"
WITHOUT_WIDTH = "\u200b\u2060\u00ad\u180e\u200c\u200d"
INVISIBLE = re.compile(
    f"(?<![{_SPACELESS}])\u200b+(?![{_SPACELESS}])|[\u2060\u00ad\u180e]+|(?<=[^\\W{_JOINED}])[\u200c\u200d]+(?=[^\\W{_JOINED}])"
)
ODD_SPACE = re.compile("[\u00a0\u2000-\u200a\u202f\u205f]")
BLANKS = " \t\u3000"
BLANK_LINES = re.compile(r"\n{3,}")
ROUNDS = 8


class RepairConfig(Config):
    """What is repaired."""

    mojibake: bool = True
    """Undo UTF-8 that was read as Latin-1, Windows-1252, MacRoman and the like."""
    control: bool = True
    """Take out control characters, terminal escapes, byte order marks and halves of surrogate pairs."""
    invisible: bool = True
    """Take out characters without width inside words, where the script does not need them."""
    nfc: bool = True
    """Write composed characters as one (NFC)."""
    whitespace: bool = True
    """One kind of line end and of space, no blanks at line ends, at most one blank line."""


def repair(text: str, cfg: RepairConfig) -> tuple[str, list[str]]:
    """Return the repaired text, and the names of what was done to it."""
    done: dict[str, None] = {}
    # One repair may lay bare another (mojibake within mojibake); three rounds were the most ever needed.
    for _ in range(ROUNDS):
        before = text
        for name, step in steps_of(cfg):
            after = step(text)
            if after != text:
                done[name] = None
                text = after
        if text == before:
            break
    return text, list(done)


def steps_of(cfg: RepairConfig) -> list[tuple[str, Callable[[str], str]]]:
    """Return the repairs that the config asks for, in their order: mojibake is made of what the others take away."""
    asked = [
        (cfg.control, "surrogates", without_surrogates),
        (cfg.mojibake, "mojibake", without_mojibake),
        (cfg.whitespace, "line_ends", lambda text: LINE_END.sub("\n", text)),
        (cfg.control, "control", without_control),
        (cfg.invisible, "invisible", without_invisible),
        (cfg.nfc, "nfc", lambda text: unicodedata.normalize("NFC", text)),
        (cfg.whitespace, "whitespace", tidy),
    ]
    return [(name, step) for wanted, name, step in asked if wanted]


def without_surrogates(text: str) -> str:
    """Join surrogate pairs to the characters they stand for; a lone half becomes U+FFFD."""
    if text.isascii() or not SURROGATE.search(text):
        return text
    joined = SURROGATE_PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    return SURROGATE.sub("\ufffd", joined)


def without_mojibake(text: str) -> str:
    """Undo wrong decodings, line by line: one document may hold several."""
    if text.isascii():
        return text
    from ftfy import fix_encoding

    return "\n".join(line if line.isascii() else fix_encoding(line) for line in text.split("\n"))


def without_control(text: str) -> str:
    """Take out control characters, terminal escapes and byte order marks."""
    return CONTROL.sub("", TERMINAL_ESCAPE.sub("", text)).replace(BYTE_ORDER_MARK, "")


def without_invisible(text: str) -> str:
    """Take out characters without width where no reader misses them."""
    if text.isascii() or not any(mark in text for mark in WITHOUT_WIDTH):
        return text
    return INVISIBLE.sub("", text)


def tidy(text: str) -> str:
    """Write every horizontal space as one kind (the ideographic one stays), and take those at line ends away."""
    if not text.isascii():
        text = ODD_SPACE.sub(" ", text)
    lines = [line.rstrip(BLANKS) for line in text.split("\n")]
    return BLANK_LINES.sub("\n\n", "\n".join(lines)).strip("\n")


def repair_row(cfg: RepairConfig) -> Callable[[Sample], Outcome]:
    """Return the function that repairs one row."""

    def repaired(sample: Sample) -> Outcome:
        done: set[str] = set()

        def change(text: str) -> str:
            result, names = repair(text, cfg)
            done.update(names)
            return result

        result = replace(sample, data=map_texts(sample.data, change))
        if not result.text.strip():
            return Outcome(sample, "empty", "no text is left")
        return Outcome(result, counts={f"repaired_{name}": 1 for name in done})

    return repaired


@stage("data.repair")
def repair_texts(ctx: Context, cfg: RepairConfig, *, source: DatasetVersion) -> DatasetVersion:
    """Repair wrongly decoded characters, control and invisible characters, line ends and white space.

    The funnel counts the rows of each repair; a row without any text left is kept back as `empty`.
    """
    if source.shape == "media":
        raise DataError("media has no text to repair", hint="Take the text out first: data.extract")
    with ctx.store.new_dataset(source.shape, license=source.license) as out:
        changed = write_rows(out, map_rows(ctx, source, "catena.data.repair:repair_row", cfg, label="Repair"))
        return out.commit(changed=dict(sorted(changed.items())))
