"""An engine that orchestrates reasoning inference.

Importing this package imports neither torch nor vllm nor ray; engines load them when they start.
"""

from reasonrt.errors import ReasonRTError
from reasonrt.evals.batch import batch
from reasonrt.evals.dataset import batch_dataset
from reasonrt.policies.registry import register_policy
from reasonrt.runtime import Runtime
from reasonrt.sync import SyncRuntime
from reasonrt.types import (
    Completion,
    FinishReason,
    FunctionTool,
    Limits,
    Message,
    Penalties,
    Request,
    Step,
    ToolCall,
)

__all__ = [
    "Completion",
    "FinishReason",
    "FunctionTool",
    "Limits",
    "Message",
    "Penalties",
    "ReasonRTError",
    "Request",
    "Runtime",
    "Step",
    "SyncRuntime",
    "ToolCall",
    "batch",
    "batch_dataset",
    "register_policy",
]
