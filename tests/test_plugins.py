"""What other packages add and what does not work of it: named once, left out, and nothing else is kept from working."""

import json
import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from reasonrt import Request, Runtime
from reasonrt.config import Config
from reasonrt.engines.build import ENGINES
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import ConfigError, EvalError, PluginError
from reasonrt.evals.tasks import TASKS, load_task
from reasonrt.plugins import Plugin
from reasonrt.policies.registry import find_policy, policy_names, policy_plugins
from reasonrt.serve.catalog import Catalog
from reasonrt.serve.config import ServeConfig
from reasonrt.tools import TOOLS

RUN = [sys.executable, "-c", "from reasonrt.cli.main import main; main()"]
KINDS = ("policy", "router", "engine", "task", "tool")
FAULTS = {
    "absent": "nowhere_to_be_found:thing",
    "no_name": "faulty:nothing_of_that_name",
    "raises": "faulty_raises:thing",
    "exits": "faulty_exits:thing",
    "type": "faulty:number",
    "build": "faulty:{kind}",
}
"""What is wrong to what an entry point names."""

FAULTY = """
from dataclasses import dataclass

from reasonrt.routers.registry import RouterKind

number = 3


class policy:
    engines = ("target",)

    @classmethod
    def from_options(cls, options):
        raise KeyError("no such\\nkey")

    async def solve(self, request, engines):
        yield


@dataclass
class Options:
    level: float = 0.5

    def __post_init__(self):
        raise KeyError("no such\\nkey")


router = RouterKind(lambda options, request, engines: None, 0.5, "nothing", options=Options)


def engine(role, **settings):
    raise KeyError("no such\\nkey")


def tool(**settings):
    raise KeyError("no such\\nkey")


class task:
    @staticmethod
    def names():
        raise KeyError("no such\\nkey")

    @staticmethod
    def load(name, split, limit):
        return []
"""
LOAD: dict[str, Callable[[], list[Plugin]]] = {  # type: ignore[type-arg]
    "policy": policy_plugins,
    "router": policy_plugins,
    "engine": ENGINES.all,
    "task": TASKS.all,
    "tool": TOOLS.all,
}
GROUP_OF = {"policy": "policies"}


@dataclass
class Packages:
    """Installs packages into a folder on the path; names are new ones each time, since loading happens once."""

    folder: Path

    def install(self, *announced: tuple[str, str], package: str = "faulty") -> dict[tuple[str, str], str]:
        """Announce, of each kind, a plug-in with the fault; the names that were given."""
        names = {(kind, fault): f"{fault}_{uuid.uuid4().hex[:8]}" for kind, fault in announced}
        lines = [
            f"[reasonrt.{GROUP_OF.get(kind, f'{kind}s')}]\n{name} = {FAULTS[fault].format(kind=kind)}"
            for (kind, fault), name in names.items()
        ]
        self.write(package, "\n".join(lines))
        return names

    def write(self, package: str, entry_points: str) -> None:
        info = self.folder / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packages:
    folder = tmp_path / "installed"
    folder.mkdir()
    (folder / "faulty.py").write_text(FAULTY)
    (folder / "faulty_raises.py").write_text('raise RuntimeError("in two\\nlines")')
    (folder / "faulty_exits.py").write_text("import sys\n\nsys.exit(3)")
    monkeypatch.syspath_prepend(str(folder))
    return Packages(folder)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_work_is_named_once_and_left_out(
    kind: str, fault: str, packages: Packages, caplog: pytest.LogCaptureFixture
) -> None:
    name = packages.install((kind, fault))[kind, fault]

    with caplog.at_level(logging.WARNING):
        plugins = {plugin.name: plugin for _ in range(3) for plugin in LOAD[kind]()}

    is_seen_when_made = fault == "build" and kind in ("engine", "tool")
    assert bool(plugins[name].problem) is not is_seen_when_made
    told = [record.getMessage() for record in caplog.records if name in record.getMessage()]
    assert len(told) == (0 if is_seen_when_made else 1)
    assert all("\n" not in line and line.endswith("it is left out") for line in told)
    assert name not in policy_names()
    assert "target" in policy_names()
    assert len(load_task("zoo", 3)) == 3


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["engine", "tool"])
def test_what_the_configuration_names_and_does_not_work_is_one_line(kind: str, fault: str, packages: Packages) -> None:
    name = packages.install((kind, fault))[kind, fault]
    values = {
        "engine": {"engines": {"target": {"kind": "plugin", "name": name}}},
        "tool": {"tools": {"it": {"name": name}}},
    }

    with pytest.raises(ConfigError, match=f"^{kind} '(target|it)': ") as raised:
        Runtime.of(Config.model_validate({"engines": {}} | values[kind]))

    assert "\n" not in str(raised.value)
    assert not isinstance(raised.value, PluginError)  # that one is left out


@pytest.mark.parametrize("kind", ["engine", "tool"])
def test_what_is_no_engine_or_tool_is_refused_by_what_it_lacks(kind: str, packages: Packages) -> None:
    packages.write("wrong", f"[reasonrt.{kind}s]\nwrong_{kind} = builtins:str")
    values = {"engine": {"engines": {"target": {"kind": "plugin", "name": "wrong_engine"}}}}
    values["tool"] = {"tools": {"it": {"name": "wrong_tool"}}}

    with pytest.raises(ConfigError, match=r"builtins:str cannot be made: TypeError: it is '.*', and has no \w+"):
        Runtime.of(Config.model_validate({"engines": {}} | values[kind]))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["policy", "router"])
async def test_server_shows_what_works_also_where_the_rest_is_configured(
    kind: str, fault: str, packages: Packages
) -> None:
    name = packages.install((kind, fault))[kind, fault]
    runtime = Runtime({role: ScriptedEngine(role, "hello") for role in ("draft", "target")}, {name: {"level": 1.0}})

    async with runtime:
        shown = Catalog(runtime, ServeConfig()).policies
        completion = await runtime.complete(Request.ask("?"))

        assert "target" in shown
        assert name not in shown
        assert completion.text == "hello"
        with pytest.raises(PluginError, match=f"{kind} '{name}' is announced as .* repair or uninstall"):
            await runtime.complete(Request.ask("?", name))


LATE = """
from dataclasses import dataclass
from reasonrt.ports import Policy


class {name}(Policy):
    engines = ("target",)

    @classmethod
    def from_options(cls, options):
        if options:
            raise KeyError("in two\\nlines")
        return cls()

    def accept(self, request, engines):
        raise KeyError("in two\\nlines")
"""


async def test_policy_that_fails_when_it_is_asked_keeps_no_server_from_starting(packages: Packages) -> None:
    (packages.folder / "late.py").write_text(LATE.format(name="Late"))
    packages.write("late", "[reasonrt.policies]\nlate = late:Late")

    async with Runtime({"target": ScriptedEngine("target", "hello")}) as runtime:
        assert "late" in policy_names()
        assert Catalog(runtime, ServeConfig()).policies == ["auto", "program_search", "self_consistency", "target"]


async def test_options_that_make_a_policy_fail_are_the_requests_fault(packages: Packages) -> None:
    (packages.folder / "late_too.py").write_text(LATE.format(name="Late"))
    packages.write("late", "[reasonrt.policies]\nlate_too = late_too:Late")
    runtime = Runtime({"target": ScriptedEngine("target", "hello")}, {"late_too": {"level": 1}})

    with pytest.raises(ConfigError, match=r"^policies\.late_too: .* does not take its options: KeyError"):
        async with runtime:
            pass


def test_task_that_does_not_load_is_named(packages: Packages) -> None:
    (packages.folder / "late_task.py").write_text(
        "def names():\n    return ['puzzles', 'riddles']\n\n\n"
        "def load(name, split, limit):\n    return [3] if name == 'riddles' else 1 // 0\n"
    )
    packages.write("late", "[reasonrt.tasks]\nlate = late_task")

    with pytest.raises(EvalError, match=r"^task 'puzzles' of late_task cannot be loaded: ZeroDivisionError"):
        load_task("puzzles", 3)
    with pytest.raises(EvalError, match=r"^task 'riddles' .* it gives 3, and not a TaskProblem"):
        load_task("riddles", 3)


@pytest.mark.parametrize("name", ["target", "rsd", "two words", "a@b"])
@pytest.mark.parametrize("kind", ["policy", "router"])
def test_name_that_is_taken_or_cannot_be_spelled_is_refused(kind: str, name: str, packages: Packages) -> None:
    (packages.folder / "fine.py").write_text(
        "from reasonrt.policies.single import Target\nfrom reasonrt.routers.registry import ROUTERS\n\n"
        "policy, router = Target, ROUTERS['entropy']\n"
    )
    packages.write("fine", f"[reasonrt.{GROUP_OF.get(kind, f'{kind}s')}]\n{name} = fine:{kind}")
    before = find_policy("target")

    problems = [plugin.problem for plugin in policy_plugins() if plugin.name == name]

    assert ["is the name of a policy of reasonrt" in problem for problem in problems] == [True]
    assert find_policy("target") is before


async def test_of_two_packages_with_one_name_the_one_that_works_is_taken(packages: Packages) -> None:
    (packages.folder / "twice.py").write_text("from reasonrt.policies.single import Target as Twice")
    packages.write("atwice", "[reasonrt.policies]\ntwice = nowhere_to_be_found:Twice")
    packages.write("btwice", "[reasonrt.policies]\ntwice = twice:Twice")

    completion = await Runtime({"target": ScriptedEngine("target", "hello")}).complete(Request.ask("?", "twice"))

    assert completion.text == "hello"


def test_package_whose_entry_points_cannot_be_read_is_named_once(
    packages: Packages, caplog: pytest.LogCaptureFixture
) -> None:
    packages.write("garbled", "[reasonrt.policies]\nthis is no entry point")

    with caplog.at_level(logging.WARNING):
        assert "target" in policy_names()
        assert len(load_task("zoo", 3)) == 3

    told = [record.getMessage() for record in caplog.records if "'garbled'" in record.getMessage()]
    assert len(told) == 1


def test_doctor_loads_every_plugin_and_builds_what_the_configuration_names(packages: Packages, tmp_path: Path) -> None:
    announced = [(kind, fault) for kind in KINDS for fault in FAULTS]
    names = packages.install(*announced)
    hosted = Path(__file__).parent / "engines" / "hosted"  # a package that works
    named = names["engine", "build"]
    engines = {"target": {"kind": "plugin", "name": named}, "draft": {"kind": "plugin", "name": "scripted"}}
    (tmp_path / "reasonrt.yaml").write_text(
        json.dumps({"engines": engines, "tools": {"it": {"name": names["tool", "build"]}}})
    )

    done = subprocess.run(
        [*RUN, "doctor", "--json", "doctor.json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(packages.folder), str(hosted), *sys.path])},
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert done.returncode == 1, done.stderr
    findings = {
        finding["subject"]: finding for finding in json.loads((tmp_path / "doctor.json").read_text())["findings"]
    }
    for (kind, fault), name in names.items():
        is_seen_when_made = fault == "build" and kind in ("engine", "tool")
        assert findings[f"{kind} {name}"]["status"] == ("ok" if is_seen_when_made else "problem")
    assert findings["engine scripted"]["status"] == findings["engine draft"]["status"] == "ok"
    assert findings["task zoo"]["status"] == "ok"
    assert "KeyError" in findings["engine target"]["way_out"]
    assert "KeyError" in findings["tool it"]["way_out"]
