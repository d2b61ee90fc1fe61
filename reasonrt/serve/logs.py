"""Log lines as JSON: one object per line, with what the line is about as fields. Writing them never waits."""

import atexit
import json
import logging
import os
import queue
import sys
import threading
import time
from datetime import UTC, datetime

from reasonrt.masking import masked_text

_LINES = 10_000  # that wait to be written; more are dropped
_FLUSH_S = 2.0  # for these, when the process ends


class JsonFormatter(logging.Formatter):
    """`fields` given in `extra` stand beside time, level, logger and message."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": masked_text(record.getMessage()),
        } | getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = masked_text(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


class UnblockedHandler(logging.Handler):
    """Writes to a file descriptor in a thread of its own; while nobody takes what is written, lines are dropped.

    Args:
        descriptor: of a file or pipe.
        most_lines: that wait.
    """

    def __init__(self, descriptor: int, most_lines: int = _LINES) -> None:
        super().__init__()
        self._descriptor, self._most_lines, self._num_dropped = descriptor, most_lines, 0
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # where the thread is not, and the queue may be locked

    def emit(self, record: logging.LogRecord) -> None:
        if self._lines.qsize() >= self._most_lines:
            self._num_dropped += 1
            return
        if self._num_dropped:
            message, dropped = "%d lines of log were dropped", (self._num_dropped,)
            self._num_dropped = 0
            self._put(logging.LogRecord(__name__, logging.WARNING, "", 0, message, dropped, None))
        self._put(record)

    def flush_within(self, seconds: float) -> None:
        """Wait until what was logged is written, but no longer; nothing is written after that."""
        self._lines.put(None)
        self._thread.join(seconds)

    def _begin(self) -> None:
        # unlike `Queue`, it may be put to while it is put to: signal handlers log
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        # neither a file object nor the handler is locked while it waits: the process can end meanwhile
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def _put(self, record: logging.LogRecord) -> None:
        self._lines.put(self.format(record).encode(errors="backslashreplace") + b"\n")

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:  # the reader has gone
                self._num_dropped += 1


class OncePerPeriod(logging.Filter):
    """Lets each message through once per period, and then says how often it would have come meanwhile; errors always.

    A message is what stands before its arguments are put in.
    """

    def __init__(self, period_s: float = 60.0) -> None:
        super().__init__()
        self._period_s = period_s
        self._told: dict[str, tuple[float, int]] = {}  # when it was let through, and how many were not since

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return True
        told_s, num_held = self._told.get(record.msg, (-self._period_s, 0))
        now = time.monotonic()
        if now - told_s < self._period_s:
            self._told[record.msg] = told_s, num_held + 1
            return False
        self._told[record.msg] = now, 0
        if num_held:
            record.msg = f"{record.getMessage()} ({num_held} times more since this was last said)"
            record.args = ()
        return True


def log_as_json(level: str = "INFO") -> None:
    """Let every logger of this process write to standard error as JSON; for programs, never on import."""
    handler = UnblockedHandler(sys.stderr.fileno())
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level, force=True)
    atexit.register(handler.flush_within, _FLUSH_S)
