"""What SDXL is told of the size of the pictures that it is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from idgen.finetune import FinetuneConfig
from idgen.train.denoisers import PersonalDenoiser, open_pipeline
from idgen.train.prompt_cache import PromptCache, of_pictures
from tests.tiny import tiny_root
from tests.tiny_sdxl import SIZE, sdxl_folder

WIDE = {"height": SIZE // 2, "width": SIZE}  # px


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_pipeline(str(sdxl_folder(tmp_path_factory.mktemp("sdxl"))), identity=False)


@pytest.fixture
def told(sdxl: Any) -> Any:
    """The time ids of every call of the UNet."""
    seen: list[torch.Tensor] = []

    def remember(_: Any, given: Any, named: dict[str, Any]) -> None:
        seen.append(named["added_cond_kwargs"]["time_ids"])

    hook = sdxl.unet.register_forward_pre_hook(remember, with_kwargs=True)
    yield seen
    hook.remove()


def test_a_batch_of_any_shape_is_told_what_the_pipeline_tells_in_a_call(sdxl: Any, told: Any) -> None:
    sdxl("a face", num_inference_steps=1, guidance_scale=0, output_type="latent", **WIDE)
    latents = torch.randn(2, 4, WIDE["height"] // sdxl.vae_scale_factor, WIDE["width"] // sdxl.vae_scale_factor)
    module = PersonalDenoiser(sdxl, FinetuneConfig(rank=2))
    module(latents, torch.tensor([10, 500]), ["a face", "a man"])
    wanted, trained = told
    assert wanted[0].tolist() == [SIZE // 2, SIZE, 0, 0, SIZE // 2, SIZE]
    assert torch.equal(trained, wanted.expand(2, -1))
    prompts = PromptCache(sdxl)(["a face", "a man"])
    assert torch.equal(of_pictures(sdxl, prompts, latents).sizes, trained)


def test_a_model_that_is_told_no_size_stays_as_it_is(tmp_path: Path) -> None:
    pipe = open_pipeline(str(tiny_root(tmp_path)), identity=False)
    prompts = PromptCache(pipe)(["a face"])
    assert of_pictures(pipe, prompts, torch.randn(1, 8, 4, 2)) is prompts
