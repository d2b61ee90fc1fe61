"""What tests share: the models that ship, real engines on them (one of each per session), a tokenizer, and traces."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

# tests run in as many processes as there are cores: threads of each would wait for those of the others, and busily
os.environ.setdefault("OMP_NUM_THREADS", "1")

import reasonrt.zoo
from reasonrt.calibration.stopping.bounds import binomial_lower_bound
from reasonrt.engines.remote import RemoteEngine
from reasonrt.engines.scripted import CharacterTokenizer
from reasonrt.engines.vllm import VllmEngine
from reasonrt.engines.vllm_settings import ONE_PROCESS, VllmSettings, cpu_dtype, thread_environment
from reasonrt.policies.stopping.traces import Checkpoint, Trace
from reasonrt.thinking import THINK
from reasonrt.types import Message

MODELS = Path(reasonrt.zoo.__file__).parent / "models"
SERVER_START_S = 240.0
SERVER_STARTS = 3
TINY_DIFFUSION: dict[str, Any] = {
    "hidden": 32,
    "layers": 2,
    "mlp": 48,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "vocab_size": 2048,
    "tokens": 2048,
    "max_positions": 4096,
    "mask_token_id": 0,
    "block_length": 8,
    "context": "causal",
    "is_tied": False,
    "end_token_ids": (1,),
}
SHARED = {"engines": "engines", "policies": "engines", "serve": "serve", "test_dataset.py": "serve"}
"""Folders and files of tests that share expensive fixtures of a session, or Ray, of which a machine has one address."""
ENVIRONMENT = dict(os.environ)  # before an engine in this process adds to it what a server must not inherit


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none; the longest come first, so that no process waits at the end."""
    items.sort(key=lambda item: _place(item.nodeid))
    for item in items:
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep in one of two parallel processes what shares engines, what shares Ray, and each other file."""
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class ByWhatIsShared(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return SHARED.get(Path(file).parts[1]) or SHARED.get(Path(file).name, file)

    config.option.loadscopereorder = False  # by the number of tests
    return ByWhatIsShared(config, log)


def _place(nodeid: str) -> int:
    """Of what shares engines, of what starts processes of its own for a few tests, and of everything else."""
    folder = Path(nodeid.partition("::")[0]).parts[1]
    return 0 if folder in SHARED else 1 if folder == "cli" or folder.endswith(".py") else 2


@cache
def has_gpu() -> bool:
    """Counted without initialising CUDA, as `torch.cuda.is_available()` would, in a process that may not need it."""
    import torch

    return bool(torch.cuda.device_count())


def core(index: int) -> str:
    """The CPU core of one of several engines, so that they do not fight for one."""
    cores = sorted(os.sched_getaffinity(0))
    return str(cores[index % len(cores)])


@pytest.fixture(scope="module", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests leave no trace in the ledger of who runs them, and find none there; nor do those of another file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def nano_draft() -> Path:
    return MODELS / "nano-draft"


@pytest.fixture(scope="session")
def nano_target() -> Path:
    return MODELS / "nano-target"


@pytest.fixture(scope="session")
async def draft_engine(nano_draft: Path) -> AsyncIterator[VllmEngine]:
    engine = await VllmEngine("draft", nano_draft, VllmSettings(cores=core(0))).start()
    yield engine
    await engine.aclose()


@pytest.fixture(scope="session")
async def target_engine(nano_target: Path) -> AsyncIterator[VllmEngine]:
    engine = await VllmEngine("target", nano_target, VllmSettings(cores=core(1))).start()
    yield engine
    await engine.aclose()


@pytest.fixture
def counted_by_vllm() -> Callable[[VllmEngine], AbstractContextManager[list[int]]]:
    """The tokens that an engine's core hands over within a block, one number for each pass of a request's."""

    @contextmanager
    def counted(engine: VllmEngine) -> Iterator[list[int]]:
        processor = engine._llm.output_processor
        process, counts = processor.process_outputs, list[int]()

        def counting(outputs: list[Any], *arguments: Any, **options: Any) -> Any:
            # of requests that have not been given up
            alive = [output for output in outputs if output.request_id in processor.request_states]
            counts.extend(len(output.new_token_ids) for output in alive if output.new_token_ids)
            return process(outputs, *arguments, **options)

        processor.process_outputs = counting
        try:
            yield counts
        finally:
            del processor.process_outputs

    return counted


@pytest.fixture(scope="session")
def vllm_server(nano_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a vLLM server of nano-target, started here."""
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    for _ in range(SERVER_STARTS):
        server, url = start_vllm_server(nano_target, log)
        try:
            if becomes_healthy(server, f"{url}/health"):
                yield f"{url}/v1"
                return
            has_ended = server.poll() is not None
        finally:
            stop(server)
        if not has_ended:  # else its port may have been taken before it listened there
            break
    pytest.fail(f"the vLLM server did not start; the end of its log:\n{log.read_text(errors='replace')[-2000:]}")


def start_vllm_server(model: Path, log: Path) -> "tuple[subprocess.Popen[bytes], str]":
    """A server of `model`, and its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # the command `vllm serve` looks for a package called vllm, which the CPU build is not
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "nano-target", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-model-len", "1024", "--block-size", "32", "--max-num-seqs", "32", "--enforce-eager"]
    command += ["--worker-extension-cls", "reasonrt.engines.vllm_worker.WorkerExtension"]
    command += ["--kv-cache-memory-bytes", str(256 << 20), "--enable-prompt-tokens-details", "--dtype", cpu_dtype()]
    command += ["--distributed-executor-backend", ONE_PROCESS]
    environment = ENVIRONMENT | thread_environment([int(core(0))]) | {"VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    return server, f"http://127.0.0.1:{port}"


def becomes_healthy(server: "subprocess.Popen[bytes]", url: str) -> bool:
    """False where it ends, or takes too long."""
    give_up = time.monotonic() + SERVER_START_S
    while time.monotonic() < give_up and server.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=10.0).is_success:
                return True
        time.sleep(0.2)
    return False


def stop(server: "subprocess.Popen[bytes]") -> None:
    """End the server and, whatever becomes of it, the engine processes under it."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            server.wait(20)


@pytest.fixture(scope="session")
async def remote_engine(vllm_server: str, nano_target: Path) -> AsyncIterator[RemoteEngine]:
    engine = await RemoteEngine("remote", vllm_server, "nano-target", tokenizer=nano_target).start()
    yield engine
    await engine.aclose()


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer without a model: one token per byte, one for ".\\n\\n", one for the end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<|end|>", *alphabet, ".Ċ", ".ĊĊ"])}
    backend = Tokenizer(models.BPE(vocabulary, [(".", "Ċ"), (".Ċ", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    folder = tmp_path_factory.mktemp("tokenizer")
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return folder


@pytest.fixture(scope="session")
def diffusion_folder(nano_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with a diffusion model of random weights, by changes of its shape, and the zoo's tokenizer.

    It writes half a dozen steps in 100 tokens, all of them nonsense, and hardly ever the end.
    """
    import torch

    from reasonrt.diffusion.checkpoints import save_model
    from reasonrt.diffusion.model import DiffusionModel
    from reasonrt.diffusion.shape import ModelShape
    from reasonrt.engines.tokenizer import HFTokenizer

    blank_lines = [token for token, text in HFTokenizer(nano_target).vocabulary().items() if text.endswith("\n\n")]

    @cache
    def make(**changes: Any) -> Path:
        generator = torch.Generator().manual_seed(1)
        model = DiffusionModel(ModelShape(**(TINY_DIFFUSION | changes)))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() == 2:
                    is_table = "embedding" in name or "head" in name
                    weight.normal_(0, 0.5 if is_table else 2 / weight.shape[1] ** 0.5, generator=generator)
            model.head.weight[model.shape.end_token_ids[0]] = 0
            model.head.weight[blank_lines] *= 2.5
        folder = tmp_path_factory.mktemp("diffusion")
        save_model(model, folder, torch.float32)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(nano_target / file, folder)
        return folder

    return make


@pytest.fixture
def make_trace() -> Callable[..., Trace]:
    """A trace from (answer, signal) pairs, one for every 100 tokens; its signal is called `sure`."""

    def make(
        problem_id: str,
        points: Sequence[tuple[str | None, float]],
        full_answer: str | None = "right",
        gold: str | None = "right",
        *,
        probe_tokens: int = 0,
        group: str = "",
    ) -> Trace:
        checkpoints = [
            Checkpoint(100 * (index + 1), answer, {"sure": sure}, probe_tokens)
            for index, (answer, sure) in enumerate(points)
        ]
        return Trace(problem_id, checkpoints, 100 * (len(points) + 1), full_answer, gold, group)

    return make


@pytest.fixture(scope="session")
def disk_with() -> Callable[[int], AbstractContextManager[None]]:
    """No file grows beyond so many bytes; what fits of a write is written, as on a disk that is full."""

    @contextmanager
    def limited(most_bytes: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def exceeds() -> Callable[[int, int, float], bool]:
    """Whether `failures` among `draws` show a probability above `delta`: its 99 % Clopper-Pearson lower bound is."""
    return lambda failures, draws, delta: binomial_lower_bound(failures, draws, 0.01) > delta


class _OpeningTokenizer(CharacterTokenizer):
    fingerprint = "characters of a thinking model"

    def chat(self, messages: Sequence[Message]) -> list[int]:
        return [*super().chat(messages), *self.encode(f"{THINK}\n")]


@pytest.fixture
def opening_tokenizer() -> CharacterTokenizer:
    """Its chat template opens the thinking, as that of many reasoning models does."""
    return _OpeningTokenizer()


_BROKEN = "\n".join(
    f"[reasonrt.{group}]\n{group}_absent = nowhere_to_be_found:thing\n{group}_raises = broken_at_import:thing"
    for group in ("policies", "routers", "engines", "tasks", "tools")
)


@pytest.fixture(scope="session")
def abacus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package of `thirdparty/abacus` is installed from its wheel, with one beside it that does not work."""
    source = tmp_path_factory.mktemp("source") / "abacus"
    shutil.copytree(Path(__file__).parent / "thirdparty" / "abacus", source)
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(source.parent)!r}))"
    built = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True)
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(source.parent / built.stdout.split()[-1]) as wheel:
        wheel.extractall(folder)
    broken = folder / "broken-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text(_BROKEN)
    (folder / "broken_at_import.py").write_text("raise RuntimeError('broken')\n")
    return folder


@pytest.fixture
def installed(abacus_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `abacus_folder`, on the path of this process."""
    monkeypatch.syspath_prepend(str(abacus_folder))
    return abacus_folder
