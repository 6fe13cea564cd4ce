"""Pictures from the mini family's two generators, each of a seed of its own, whatever the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from benchmarks.repaired import as_bytes, generators
from idgen.adapters.arc2face.words import load_text_base
from idgen.console import progress
from idgen.identity import Identity
from idgen.pipelines import Arc2FacePipeline
from idgen.rewards.ascent import guide_identity, guide_words

if TYPE_CHECKING:
    from idgen.faces import FaceEncoder
    from idgen.models.probe import AttributeReader

BATCH = 16


def load_arc2face(device: torch.device, dtype: torch.dtype, source: str = "mini") -> Arc2FacePipeline:
    pipe = Arc2FacePipeline.from_pretrained(source, torch_dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_base(device: torch.device, dtype: torch.dtype) -> StableDiffusionPipeline:
    """The mini family's text-to-face model."""
    return load_text_base(dtype=dtype).to(device)


def generate_faces(
    pipe: Arc2FacePipeline,
    embeddings: Tensor,
    images: int,
    *,
    steps: int,
    guidance: float,
    seed: int,
    encoder: FaceEncoder | None = None,
    identity_guidance: float = 0.0,
    batch: int = BATCH,
) -> Tensor:
    """(people, images, height, width, 3) uint8 from one embedding per person (people, dim).

    A person without an embedding (zeros: no face was found in the references) gets black pictures.

    Args:
        encoder, identity_guidance: who made the embeddings, and how strongly it guides the later steps.
    """
    known = embeddings.abs().sum(-1) > 0
    rows = embeddings[known].repeat_interleave(images, 0)
    parts = []
    for start in progress(range(0, len(rows), batch), -(-len(rows) // batch), "generating"):
        chosen = rows[start : start + batch]
        guided = pipe
        if encoder is not None and identity_guidance:
            people = [Identity(row[None], encoder.recogniser) for row in chosen]
            guided = guide_identity(encoder, pipe.vae, people, identity_guidance).guided(pipe)
        made = guided(
            chosen,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators(seed, range(start, start + len(chosen))),
            output_type="np",
        ).images
        parts.append(as_bytes(made))
    pictures = torch.cat(parts).unflatten(0, (-1, images))
    everybody = torch.zeros(len(embeddings), *pictures.shape[1:], dtype=torch.uint8)
    everybody[known] = pictures
    return everybody


def generate_from_text(
    pipe: StableDiffusionPipeline,
    prompts: Sequence[str],
    *,
    steps: int,
    guidance: float,
    seed: int,
    reader: AttributeReader | None = None,
    batch: int = BATCH,
) -> Tensor:
    """(prompts, height, width, 3) uint8.

    Args:
        reader: guides towards what the prompts name; none by default.
    """
    parts = []
    for start in progress(range(0, len(prompts), batch), -(-len(prompts) // batch), "generating from text"):
        chosen = list(prompts[start : start + batch])
        guided = pipe if reader is None else guide_words(reader, pipe.vae, chosen).guided(pipe)
        made = guided(
            chosen,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators(seed, range(start, start + len(chosen))),
            output_type="np",
        ).images
        parts.append(as_bytes(made))
    return torch.cat(parts)
