"""Ctrl-C and SIGTERM, as a request to stop at the next good moment."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop (Ctrl-C or SIGTERM) and did, at the end of a step."""


@contextmanager
def requests(*, grace_s: float = 0.0) -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C or SIGTERM sets; the second acts as ever.

    Args:
        grace_s: What comes within so many seconds of the first is the same request.
    """
    stop = threading.Event()
    asked = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: Any) -> None:
        nonlocal asked
        if not stop.is_set():
            stop.set()
            asked = time.monotonic()
        if not grace_s:
            restore()
        elif time.monotonic() - asked > grace_s:
            restore()
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
