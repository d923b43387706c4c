"""Run by path in a child process (`pydoc.py` beside it): the server of `python -m pydoc -n`, ended by our parent's end.

`python -m pydoc` ends at the end of its standard input too, but joins its server thread first, and that never returns
once a page has made it import `threading` anew. So input is watched here, and pydoc is given one that never ends.

pydoc leaves addresses in memory out of values, but not out of signatures (`default=<object object at 0x7f96c45a4160>`);
here they go from all of a page, and with them the folder of the library: the same documentation is the same page.
"""

import os
import pydoc
import re
import sys
import threading

SPACE = "(?: |&nbsp;)"
ADDRESS = re.compile(f"{SPACE}(?:at{SPACE}0x|handle{SPACE})[0-9a-f]{{6,}}")


def leave_at_end_of(descriptor: int) -> None:
    """Leave the process when `descriptor` has nothing more to read."""
    while os.read(descriptor, 1):
        pass
    os._exit(0)


def same_everywhere(url: str, content_type: str = "text/html") -> str:
    """Return pydoc's page without addresses in memory and without the place where Python is installed."""
    page = ADDRESS.sub("", draw(url, content_type))
    for folder in FOLDERS:
        page = page.replace(folder + "/", "").replace(folder, os.path.basename(folder))  # noqa: PTH119
    return page


FOLDERS = sorted(filter(os.path.isabs, sys.path), key=len, reverse=True)
draw = pydoc._url_handler  # type: ignore[attr-defined]

if __name__ == "__main__":
    pydoc._url_handler = same_everywhere  # type: ignore[attr-defined]
    parent = os.dup(0)
    silent, _kept_open = os.pipe()
    os.dup2(silent, 0)
    threading.Thread(target=leave_at_end_of, args=(parent,), daemon=True).start()
    pydoc.browse(0, hostname="127.0.0.1", open_browser=False)  # type: ignore[attr-defined]
