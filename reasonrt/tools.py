"""Tools by the configuration: what policies use beside engines, our own and those of other packages."""

from collections.abc import Callable, Mapping

from reasonrt.config import Config, ToolConfig
from reasonrt.errors import ConfigError, ReasonRTError
from reasonrt.plugins import PluginGroup, make, read_maker
from reasonrt.ports import Tool
from reasonrt.programs.sandbox.build import build_sandbox
from reasonrt.programs.sandbox.on_demand import OnDemandSandbox

TOOLS = PluginGroup("tool", "reasonrt.tools", read_maker)
SANDBOX = "sandbox"

_OWN: Mapping[str, Callable[..., Tool]] = {SANDBOX: build_sandbox}


def default_tools() -> dict[str, Tool]:
    """What every runtime has that is given no other tool of the name: a sandbox, which starts when it is used."""
    return {SANDBOX: OnDemandSandbox(build_sandbox)}


def build_tools(config: Config) -> dict[str, Tool]:
    """The tools of `config` by name, not started.

    Raises:
        ConfigError: no installed package offers one by the entry point `reasonrt.tools`, or it cannot be made.
    """
    return {name: build_tool(name, tool) for name, tool in config.tools.items()}


def build_tool(name: str, config: ToolConfig) -> Tool:
    """One tool, not started; raises as `build_tools`."""
    try:
        if config.name in _OWN:
            return _OWN[config.name](**config.settings)
        tool: Tool = make(TOOLS, config.name, Tool, settings=config.settings)
    except ReasonRTError as error:
        raise ConfigError(f"tool {name!r}: {error}") from error
    return tool
