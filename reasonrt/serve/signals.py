"""The signals that tell a server to end."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def take_signals(handle: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, Any]:
    """Let `handle` have SIGTERM, SIGINT and SIGHUP; one that is ignored, as under `nohup`, stays so.

    Returns:
        What had them before.
    """
    chosen = [sign for sign in _SIGNALS if signal.getsignal(sign) is not signal.SIG_IGN]
    return {sign: signal.signal(sign, handle) for sign in chosen}
