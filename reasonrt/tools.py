"""Tools by the configuration: what policies use beside engines, made by other packages."""

from reasonrt.config import Config, ToolConfig
from reasonrt.errors import ConfigError, ReasonRTError
from reasonrt.plugins import PluginGroup, make, read_maker
from reasonrt.ports import Tool

TOOLS = PluginGroup("tool", "reasonrt.tools", read_maker)


def build_tools(config: Config) -> dict[str, Tool]:
    """The tools of `config` by name, not started.

    Raises:
        ConfigError: no installed package offers one by the entry point `reasonrt.tools`, or it cannot be made.
    """
    return {name: build_tool(name, tool) for name, tool in config.tools.items()}


def build_tool(name: str, config: ToolConfig) -> Tool:
    """One tool, not started; raises as `build_tools`."""
    try:
        tool: Tool = make(TOOLS, config.name, Tool, settings=config.settings)
    except ReasonRTError as error:
        raise ConfigError(f"tool {name!r}: {error}") from error
    return tool
