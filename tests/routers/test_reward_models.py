"""Reward models of others, by tiny random weights of their architecture: what they are asked, and what is read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2Model

from reasonrt.config import model_folder
from reasonrt.engines.vllm import VllmEngine
from reasonrt.engines.vllm_settings import VllmSettings
from reasonrt.routers.prompts import LAYOUTS, StepPrompt
from reasonrt.transcript import Transcript
from reasonrt.types import Message, Step

pytestmark = pytest.mark.vllm


def write_qwen_prm(folder: Path) -> tuple[Qwen2Model, torch.nn.Sequential]:
    """A Qwen2.5-Math-PRM of 2 layers."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=1024, num_labels=2,
        architectures=["Qwen2ForProcessRewardModel"],
    )  # fmt: skip
    model = Qwen2Model(config).eval()
    head = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    for parameter in [*model.parameters(), *head.parameters()]:
        parameter.data = (parameter.data * (4 if parameter.dim() > 1 else 1)).bfloat16().float()
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    weights |= {f"score.{name}": value for name, value in head.state_dict().items()}
    save_file({name: value.bfloat16().contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"torch_dtype": "bfloat16"}))
    for pattern in ("*token*", "chat_template*"):
        for file in model_folder("zoo:nano-draft").glob(pattern):
            shutil.copy(file, folder)
    return model, head


async def test_process_reward_is_read_at_the_end_of_each_step(tmp_path: Path) -> None:
    model, head = write_qwen_prm(tmp_path)
    engine = VllmEngine("reward", tmp_path, VllmSettings(scores=True))
    transcript = Transcript((Message("user", "What is 12 + 30?"),))
    prompt = StepPrompt(engine, LAYOUTS["qwen_prm"])
    try:
        for text in ("First 12 + 30 is near 40.\n\n", "It is 42, so much is sure.\n\n", "The end of it.\n\n"):
            step = Step(text, (1,), "draft")
            token_ids = prompt.token_ids(transcript, step)
            with torch.no_grad():
                hidden = model(torch.tensor([token_ids])).last_hidden_state[0, -1]
                expected = float(head(hidden).softmax(-1)[1])

            rewards = [await prompt.score(transcript, step) for _ in range(2)]  # the second reads the prefix cache

            assert rewards == pytest.approx([expected] * 2, abs=0.03)
            transcript.commit(step)
    finally:
        await engine.aclose()
