"""How the processes of a service log: a line per event on stderr, for people or as JSON. Never what users wrote."""

import json
import logging
import time

from kilotron.apis.process_configs import LogConfig
from kilotron.coordinator.supervision.child_output import STDERR_FD, write_line

_MAX_LINE_CHARS = 4096
# Two of them, escaped, and all else fit into a line.
_MAX_PART_CHARS = 1500


def log_to_stderr(config: LogConfig, process: str) -> None:
    """From now on kilotron's loggers write there, and warnings of libraries too.

    Args:
        config: how.
        process: its role, for JSON lines; in front of text the supervisor puts its name.
    """
    handler = UnblockedHandler()
    handler.setFormatter(JsonLines(process) if config.format == "json" else TextLines())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("kilotron").setLevel(config.level)


class UnblockedHandler(logging.Handler):
    """Writes to stderr where that needs no waiting: a reader that has stalled or left must stop no process."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the lines of one event."""
        for line in self.format(record).splitlines():
            write_line(STDERR_FD, line)


class TextLines(logging.Formatter):
    """Time, level, logger, message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z")

    def format(self, record: logging.LogRecord) -> str:
        """One event; only a traceback makes it more than a line."""
        return super().format(record)[: 4 * _MAX_LINE_CHARS]


class JsonLines(logging.Formatter):
    """The same as one JSON object, with the fields given as `extra={"fields": {...}}`."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """One event in one line."""
        event = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.created)),
            "level": record.levelname,
            "process": self._process,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage()[:_MAX_PART_CHARS],
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)[-_MAX_PART_CHARS:]
        return json.dumps(event)
