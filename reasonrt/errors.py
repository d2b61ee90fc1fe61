"""Every error that reasonrt raises on purpose.

* ReasonRTError
  + ConfigError        a file, flag or environment value that cannot be used
    - PluginError      what another installed package adds cannot be loaded
  + RequestError       a request that cannot be served as it stands
  + EngineError        an engine died or answered nonsense; a later call may work
    - CapabilityError  the engine can never do what was asked of it
    - UpstreamError    a server behind an engine failed; names its address and what it said, which is no caller's
      * RefusedError   it answered that it does not do what it was asked for: to ask again soon changes nothing
  + CalibrationError   data that cannot be calibrated on
    - Infeasible       (calibration/stopping/sample_size.py) data that cannot carry the promise asked of it
  + KernelError        tensors that a kernel cannot take
  + EvalError          a task, an answer file or a journal that cannot be read or written

A message names the value that is wrong and the way out. A limit that ends a request early is a result with a
`FinishReason`, not an error. What comes from outside stands in a message by `shown`, never as it came.
"""

import reprlib

_MOST_SHOWN = 80  # characters of one value
_MOST_SAID = 1000  # of a message


class ReasonRTError(Exception):
    """Root of the tree: one clear line, fit to be shown to the person who caused it."""

    def __str__(self) -> str:
        return in_one_line(super().__str__(), _MOST_SAID)


class ConfigError(ReasonRTError):
    pass


class PluginError(ConfigError):
    pass


class RequestError(ReasonRTError):
    pass


class EngineError(ReasonRTError):
    pass


class CapabilityError(EngineError):
    pass


class UpstreamError(EngineError):
    pass


class RefusedError(UpstreamError):
    pass


class CalibrationError(ReasonRTError):
    pass


class KernelError(ReasonRTError):
    pass


class EvalError(ReasonRTError):
    pass


def told(error: Exception) -> str:
    """What the answer to a request may say of a failure that it has outlived."""
    return "the server of an engine failed" if isinstance(error, UpstreamError) else str(error)


def shown(value: object) -> str:
    """A value from outside as a message quotes it: at most 80 characters, control characters escaped."""
    return _cut(_QUOTING.repr(value), _MOST_SHOWN)


def in_one_line(text: str, most_characters: int = _MOST_SHOWN) -> str:
    """Words from outside without quotes, with control characters escaped and what is too much left out.

    Both ends are kept: a message begins with the value that is wrong, and ends with the way out.
    """
    cut = _cut(" ".join(_cut(text, 2 * most_characters).split()), most_characters)
    if cut.isprintable():
        return cut
    return _cut("".join(each if each.isprintable() else repr(each)[1:-1] for each in cut), most_characters)


def _cut(text: str, most_characters: int) -> str:
    if len(text) <= most_characters:
        return text
    end = most_characters // 3
    return f"{text[: most_characters - end - 3]}...{text[-end:]}"


class _Quoting(reprlib.Repr):
    """`repr` that neither descends without end nor writes out what is cut off anyway."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = self.maxlist = self.maxtuple = self.maxdict = 4
        self.maxstring = self.maxother = self.maxlong = _MOST_SHOWN

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to write out thousands of digits
        return repr(value) if value.bit_length() <= 256 else f"a number of {value.bit_length()} bits"


_QUOTING = _Quoting()
