"""Log lines as JSON: one object per line, with what the line is about as fields."""

import json
import logging
from datetime import UTC, datetime

from reasonrt.masking import masked_text


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


def log_as_json(level: str = "INFO") -> None:
    """Let every logger of this process write to standard error as JSON; for programs, never on import."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level, force=True)
