"""Tells files of Python and of installed packages from a user's own."""

from __future__ import annotations

import os
import re
import site
import sysconfig

_PATHS = sysconfig.get_paths()
_LIBRARIES = tuple(
    f"{path}{os.sep}"
    for path in {
        *(_PATHS[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
        # Debian has packages here.
        "/usr/lib/python3",
    }
)
# Directories of Python and of packages wherever they are: on PYTHONPATH, in another environment, or
# on another machine.
_ELSEWHERE = re.compile(r"[/\\](site-packages|dist-packages|lib[/\\]python3\.\d+)[/\\]")


def is_of_library(file: str) -> bool:
    """Whether a source file belongs to Python or to an installed package.

    Examples:
        >>> is_of_library("/opt/env/lib/python3.11/site-packages/numpy/core/numeric.py")
        True
        >>> is_of_library("/home/me/project/train.py")
        False
    """
    return file.startswith((*_LIBRARIES, "<frozen ")) or _ELSEWHERE.search(file) is not None
