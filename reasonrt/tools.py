"""Tools by the configuration: what policies use beside engines, made by other packages."""

from importlib.metadata import entry_points

from reasonrt.config import Config
from reasonrt.errors import ConfigError
from reasonrt.ports import Tool


def build_tools(config: Config) -> dict[str, Tool]:
    """The tools of `config` by name, not started.

    Raises:
        ConfigError: no installed package offers one by the entry point `reasonrt.tools`, or it cannot be made.
    """
    tools: dict[str, Tool] = {}
    for name, tool in config.tools.items():
        entries = entry_points(group="reasonrt.tools", name=tool.name)
        if not entries:
            raise ConfigError(
                f"tool {name!r}: no installed package offers the tool {tool.name!r}; install one that does"
            )
        for entry in entries:
            try:
                tools[name] = entry.load()(**tool.settings)
            except Exception as error:  # code of others: whatever it raises, the configuration names it
                reason = f"{type(error).__name__}: {error}"
                raise ConfigError(f"tool {name!r}: {entry.value} cannot be made: {reason:.200}") from error
    return tools
