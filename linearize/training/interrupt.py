"""Ctrl-C and SIGTERM ask the loop to stop after the current step; the same again stops at once.

The same: a launcher of several processes answers Ctrl-C, which reached them too, with SIGTERM.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

_NOTE = b"\nstopping after this step; once more to abort without saving\n"


class StopRequest:
    """Context manager: True once a signal has asked to stop. Restores the handlers on exit.

    Python delivers signals to the main thread only; elsewhere this installs nothing.
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: dict[int, object] = {}

    def __bool__(self) -> bool:
        return self._asked

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not self._asked:
            os.write(2, _NOTE)
        self._asked = True
        signal.signal(number, self._previous.pop(number))

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())
