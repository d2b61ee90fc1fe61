"""How files of calibration are read and written: what is wrong is a `CalibrationError` that names the place."""

import json
from typing import Any, Final

from reasonrt.errors import CalibrationError
from reasonrt.files import FileKind

FILES: Final = FileKind(CalibrationError, "mend it or name another file")


def canonical(value: Any) -> str:
    """One text for equal values, on one line; what a hash is taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_of_numpy)


def _of_numpy(value: Any) -> Any:
    return value.item()
