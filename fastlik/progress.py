"""Progress bars by tqdm where it is installed; without it, none."""

from __future__ import annotations

import sys
from typing import Any


class _Silent:
    """The part of tqdm's interface that is used here, showing nothing."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        pass

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        pass


_hinted = False


def progress_bar(shown: bool, **options: Any) -> Any:
    """A tqdm bar with ``options``, or a silent stand-in where not shown or tqdm is missing."""
    global _hinted
    if not shown:
        return _Silent()
    try:
        from tqdm import tqdm
    except ImportError:
        if not _hinted:
            print("no progress bar: pip install fastlik[train] brings tqdm", file=sys.stderr)
            _hinted = True
        return _Silent()
    return tqdm(**options)
