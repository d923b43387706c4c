"""Every error that Catena raises on purpose. Each has one sentence, a hint, an exit code and an HTTP status.

    CatenaError             1  500   something that we did not foresee
    ├── UsageError          2  400   what was asked makes no sense
    │   ├── ConfigError              a value in a config
    │   └── WrittenError             a YAML file as a whole
    │       ├── RecipeError          unknown stage, cycle, edge of the wrong type
    │       └── TaskError            a task to evaluate on: unknown scorer, a template that does not parse
    ├── NotFound            3  404   a name, a file, a model that is not there
    ├── DataError           4  422   the data or the model folder cannot be used
    ├── EnvironmentProblem  5  503   the machine: a missing package, a full disk, a port in use
    │   ├── MissingExtra
    │   ├── DiskFull
    │   ├── NotWritable
    │   ├── PortInUse
    │   └── WorkspaceTooNew
    ├── IntegrityError      6  500   stored bytes are not what was stored
    ├── GateFailed          7  409   a gate of a recipe said no
    ├── RemoteError         8  502   another server is down, slow, or answers nonsense
    └── Cancelled         130  499   a person or a signal stopped it

`ValueError` and `assert` are for our own mistakes; they end as "unexpected" with a traceback in the run's log.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from difflib import get_close_matches


class CatenaError(Exception):
    """The root: one sentence for a person, and `hint`, what to do about it."""

    exit_code = 1
    http_status = 500
    usual_hint = "Run it again with --debug to see where it happened."
    """What the command line says where an error brings no hint of its own."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(CatenaError):
    """What was asked cannot be done as asked."""

    exit_code = 2
    http_status = 400
    usual_hint = "`catena COMMAND --help` shows what a command takes, with examples."


class ConfigError(UsageError):
    """A value in a config is unknown, of the wrong type, or out of range."""

    usual_hint = "`catena explain STAGE` shows every value of a stage."


class WrittenError(UsageError):
    """A YAML file is wrong; nothing of it ran. `problems` holds one line for each mistake."""

    def __init__(self, message: str, *, hint: str = "", problems: Iterable[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class RecipeError(WrittenError):
    """A recipe is wrong."""


class TaskError(WrittenError):
    """A task to evaluate on is wrong."""

    usual_hint = "docs/evaluation.md tells what a task has."


class NotFound(CatenaError):
    """A name, version, file or server that is not there."""

    exit_code = 3
    http_status = 404
    usual_hint = "`catena list` shows what is stored."


class DataError(CatenaError):
    """The data, or a model folder, cannot be used for this."""

    exit_code = 4
    http_status = 422
    usual_hint = "`catena show REF --samples 3` shows what a dataset holds, `--rejects` what was kept back."


class EnvironmentProblem(CatenaError):
    """The machine is not ready: a package, space, a permission, a port."""

    exit_code = 5
    http_status = 503
    usual_hint = "`catena doctor` says what is wrong with this machine, and what to do."


class MissingExtra(EnvironmentProblem):
    """A package of an optional extra is not installed."""


class DiskFull(EnvironmentProblem):
    """No space is left where Catena has to write."""


class NotWritable(EnvironmentProblem):
    """A folder is read-only, or belongs to someone else."""


class PortInUse(EnvironmentProblem):
    """Another process listens on the port."""


class WorkspaceTooNew(EnvironmentProblem):
    """The workspace was written by a newer Catena."""


class IntegrityError(CatenaError):
    """Stored bytes differ from what was stored."""

    exit_code = 6
    http_status = 500
    usual_hint = "`catena fsck` names all that is damaged; with --forget the next run makes it again."


class GateFailed(CatenaError):
    """A gate of a recipe refused the candidate."""

    exit_code = 7
    http_status = 409
    usual_hint = "`catena show` on the reports of the run shows the scores that were compared."


class RemoteError(CatenaError):
    """Another server did not answer, or not as it should."""

    exit_code = 8
    http_status = 502
    usual_hint = "Look whether it runs; then the same command goes on where it was."


class Cancelled(CatenaError):
    """A person or a signal stopped the work; what was finished is kept."""

    exit_code = 130
    http_status = 499
    usual_hint = "The same command goes on where it was."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `Did you mean 'x'?` for the closest known word, or the list of them where none is close."""
    options = sorted(known)
    close = get_close_matches(word, options, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]!r}?"
    if not options:
        return ""
    shown = ", ".join(options[:12]) + (", ..." if len(options) > 12 else "")
    return f"Known: {shown}."


_NO_SPACE = re.compile(
    r"no space left on device|os error 28|disk quota exceeded|database or disk is full", re.IGNORECASE
)
_READ_ONLY = re.compile(
    r"read-only file system|permission denied|readonly database|unable to open database", re.IGNORECASE
)


def environment_problem(error: BaseException, where: str | os.PathLike[str] = "") -> EnvironmentProblem | None:
    """Translate an operating system's refusal (from Python, Arrow, Lance or SQLite) into our error, or None.

    Rust and C++ libraries keep only the text of the system's error, so its number is asked first and its text second.
    """
    number = getattr(error, "errno", None)
    text = str(error)
    place = str(where or getattr(error, "filename", "") or "the workspace")
    if number in (errno.ENOSPC, errno.EDQUOT) or _NO_SPACE.search(text):
        return DiskFull(
            f"no space is left on the disk that holds {place}",
            hint="Free some space (`catena gc` removes leftovers), then run the same command: it goes on where it was.",
        )
    if number in (errno.EROFS, errno.EACCES, errno.EPERM) or _READ_ONLY.search(text):
        return NotWritable(
            f"{place} cannot be written", hint="Choose another folder with --workspace, or mend its permissions."
        )
    if number == errno.EADDRINUSE:
        return PortInUse(
            "the port is in use by another process", hint="Choose another with --port; --port 0 takes any free one."
        )
    return None
