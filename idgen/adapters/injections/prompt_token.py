"""Prompt-token substitution: identity vectors take the place of words in a prompt.

Arc2Face substitutes before the text encoder (`encode_embeddings` then runs the encoder on the altered word
embeddings); PhotoMaker substitutes in the encoder's output. Nothing is stored on a module, so threads and
pipelines may share one text encoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import CLIPTextModel
from transformers.masking_utils import create_causal_mask


def substitute(embeddings: torch.Tensor, mask: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Replace the masked rows of a prompt, in order, by vectors. Differentiable in both.

    Args:
        embeddings: (batch, length, dim) rows of a prompt; a batch of 1 serves every identity.
        mask: (1 or batch, length) bool, True where a row is replaced; the same number of rows, `tokens`, in each prompt.
        vectors: (batch, tokens, dim) what to put there.
    Returns:
        (batch, length, dim) in the dtype of `embeddings`.
    """
    batch, _, dim = vectors.shape
    rows = embeddings.expand(batch, -1, -1)
    where = mask.to(rows.device).expand(batch, -1)[..., None]  # (batch, length, 1)
    return rows.masked_scatter(where.expand(-1, -1, dim), vectors.to(rows))


def embed_tokens(text_encoder: CLIPTextModel, input_ids: torch.Tensor) -> torch.Tensor:
    """Word embeddings without positions: ids (batch, length) -> (batch, length, dim)."""
    with _offload_hooks(text_encoder):
        return text_encoder.get_input_embeddings()(input_ids)


def encode_embeddings(text_encoder: CLIPTextModel, embeddings: torch.Tensor) -> torch.Tensor:
    """`text_encoder(input_ids).last_hidden_state`, from word embeddings instead of ids.

    Args:
        embeddings: (batch, length, dim) word embeddings, positions not yet added.
    Returns:
        (batch, length, dim) all rows after the final layer norm. Attention is causal; padding is not masked,
        as in Stable Diffusion.
    """
    with _offload_hooks(text_encoder):
        hidden = text_encoder.embeddings(inputs_embeds=embeddings)  # adds the positions
        causal = create_causal_mask(text_encoder.config, hidden, attention_mask=None, past_key_values=None)
        hidden = text_encoder.encoder(inputs_embeds=hidden, attention_mask=causal, is_causal=True).last_hidden_state
        return text_encoder.final_layer_norm(hidden)


@contextmanager
def _offload_hooks(module: torch.nn.Module) -> Iterator[None]:
    """What accelerate's and diffusers' offloading do around `module.forward`, here around calls of its parts."""
    accelerate_hook = getattr(module, "_hf_hook", None)
    diffusers_hooks = list(getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).values())
    if accelerate_hook is not None:
        accelerate_hook.pre_forward(module)
    for hook in diffusers_hooks:
        hook.pre_forward(module)
    yield
    for hook in reversed(diffusers_hooks):
        hook.post_forward(module, None)
