"""The rules that keep the layout sound: links, floors of imports, who may import what."""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKS = ("calibration", "kernels", "policies", "routers")
FLOORS = (  # from the top: an import never goes up
    ("__main__",),
    ("cli",),
    ("benches", "zoo", "testing"),
    ("serve", "evals"),
    ("runtime", "calibration"),
    ("policies",),
    ("writing", "routers"),
    ("metering", "scopes", "tools", "programs", "engines", "transcript"),
    ("ports",),
    ("diffusion",),
    ("boundaries", "pace", "config", "options", "trees"),
    ("types",),
    ("answers",),
    ("algebra",),
    ("thinking", "tasks", "plugins", "hub", "plots"),
    ("files", "masking", "errors", "kernels"),
)
NO_MIRROR = {
    "hostile": "the attacks of benchmarks/, on every room that faces callers",
    "engines/hosted": "a package of somebody else's, with engines",
    "thirdparty": "a package of somebody else's with one of everything, and its tests",
    "thirdparty/abacus/reasonrt_abacus": "the package",
}
MAX_FILE_BYTES = 30_000_000
FLOOR_OF = {name: -index for index, names in enumerate(FLOORS) for name in names}


def python_files() -> list[Path]:
    folders = (*LINKS, "reasonrt", "tests", "benchmarks", "examples", "requirements")
    files = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in files if path.relative_to(ROOT).parts[:2] not in {("reasonrt", x) for x in LINKS})


@cache
def modules() -> dict[str, Path]:
    """Every module of reasonrt by its name."""
    found = {}
    for path in python_files():
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "reasonrt" else ("reasonrt", *parts) if parts[0] in LINKS else ()
        if parts:
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Each name that `path` imports, at the top or inside a function; `from a import b` gives both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor_of(module: str) -> int:
    """Higher is nearer to the user. The package itself re-exports the runtime, so it stands on that floor."""
    return FLOOR_OF.get(module.partition(".")[2].split(".")[0], FLOOR_OF["runtime"])


def importers_of(package: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in modules().values()
        if any(name.split(".")[0] == package for name in imports(path))
    }


@pytest.mark.parametrize("name", LINKS)
def test_link_is_relative_and_leads_to_the_root_folder(name: str) -> None:
    link = ROOT / "reasonrt" / name

    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    assert link.is_dir()


def test_kernels_is_no_package_by_itself() -> None:
    """With it, the root on the path would hide the `kernels` package that transformers imports."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_tests_are_no_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_tests_mirror_the_packages() -> None:
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("*.py")}

    assert not {str(folder) for folder in folders if not (ROOT / "reasonrt" / folder).is_dir()} - NO_MIRROR.keys()


def test_tracked_files_are_small() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout of git")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    sizes = {name: (ROOT / name).lstat().st_size for name in listed.split("\0") if (ROOT / name).is_file()}

    assert "pyproject.toml" in sizes
    assert not {name: size for name, size in sizes.items() if size > MAX_FILE_BYTES}


def test_modules_are_found() -> None:
    assert {"reasonrt", "reasonrt.runtime", "reasonrt.ports"} <= set(modules())


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_the_linked_folders_by_their_bare_names(path: Path) -> None:
    assert not [name for name in imports(path) if name.split(".")[0] in LINKS]


@pytest.mark.parametrize("module", sorted(set(modules()) - {"reasonrt"}))
def test_imports_never_go_up(module: str) -> None:
    used = {name for name in imports(modules()[module]) if name.split(".")[0] == "reasonrt"}

    assert not {name for name in used if floor_of(name) > floor_of(module)}


def test_imports_make_no_circle() -> None:
    uses = {name: {used for used in imports(path) if used in modules()} for name, path in modules().items()}
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in finished:
            for used in sorted(uses[name]):
                visit(used, (*path, name))
            finished.add(name)

    for name in sorted(uses):
        visit(name, ())


def test_only_the_engine_with_its_start_and_its_tool_parsers_imports_vllm() -> None:
    known = {"vllm", "vllm_calls", "vllm_start"}
    assert importers_of("vllm") <= {f"reasonrt/engines/{name}.py" for name in known}


def test_only_serving_and_batches_on_ray_import_ray() -> None:
    assert importers_of("ray") <= {"reasonrt/serve/backends/ray.py", "reasonrt/evals/dataset.py"}


@pytest.mark.parametrize("folder", ["policies", "routers"])
@pytest.mark.parametrize("package", ["torch", "ray", "vllm"])
def test_policies_and_routers_know_no_heavy_library(folder: str, package: str) -> None:
    assert not [path for path in importers_of(package) if path.startswith(f"{folder}/")]


@pytest.mark.parametrize("folder", ["policies", "routers", "reasonrt/serve", "reasonrt/runtime.py"])
def test_what_serves_imports_no_calibration(folder: str) -> None:
    importers = {name for name, path in modules().items() if any(_is_calibration(used) for used in imports(path))}

    assert not [name for name in importers if str(modules()[name].relative_to(ROOT)).startswith(folder)]


def _is_calibration(module: str) -> bool:
    return module.split(".")[:2] == ["reasonrt", "calibration"]


@pytest.mark.parametrize("folder", ["policies", "routers"])
def test_policies_and_routers_know_engines_by_their_ports(folder: str) -> None:
    files = [path for path in modules().values() if path.relative_to(ROOT).parts[0] == folder]

    assert not [path for path in files if any(used.startswith("reasonrt.engines") for used in imports(path))]
