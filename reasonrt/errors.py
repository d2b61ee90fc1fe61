"""Every error that reasonrt raises on purpose.

* ReasonRTError
  + ConfigError        a file, flag or environment value that cannot be used
    - PluginError      what another installed package adds cannot be loaded
  + RequestError       a request that cannot be served as it stands
  + EngineError        an engine died or answered nonsense; a later call may work
    - CapabilityError  the engine can never do what was asked of it
  + CalibrationError   data that cannot be calibrated on
    - Infeasible       (calibration/stopping/sample_size.py) data that cannot carry the promise asked of it
  + KernelError        tensors that a kernel cannot take
  + EvalError          a task, an answer file or a journal that cannot be read or written

A message names the value that is wrong and the way out. A limit that ends a request early is a result with a
`FinishReason`, not an error.
"""


class ReasonRTError(Exception):
    """Root of the tree: one clear line, fit to be shown to the person who caused it."""


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


class CalibrationError(ReasonRTError):
    pass


class KernelError(ReasonRTError):
    pass


class EvalError(ReasonRTError):
    pass
