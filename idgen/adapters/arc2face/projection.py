"""Face embeddings -> prompt embeddings (Arc2Face, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from idgen.adapters.arc2face.config import Arc2FaceConfig
from idgen.adapters.injections.prompt_token import embed_tokens, encode_embeddings, substitute
from idgen.errors import IdgenError


@dataclass(frozen=True)
class IdentityPrompt:
    """The tokenised prompt: `input_ids` (1, length), `mask` (1, length) True at the face's word, `null_ids` (1, length)."""

    input_ids: torch.Tensor
    mask: torch.Tensor
    null_ids: torch.Tensor

    @classmethod
    def tokenise(cls, tokenizer: CLIPTokenizer, config: Arc2FaceConfig) -> IdentityPrompt:
        """Raises IdgenError when the tokenizer does not know the face's word as a single token."""
        word = tokenizer(config.token, add_special_tokens=False).input_ids
        if len(word) != 1 or word[0] == tokenizer.unk_token_id:
            raise IdgenError(
                f"the tokenizer does not know {config.token!r} as one token: it does not belong to an Arc2Face model"
            )
        input_ids, null_ids = (
            tokenizer(
                text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
            ).input_ids
            for text in (config.prompt, "")
        )
        mask = input_ids == word[0]
        if int(mask.sum()) != 1:
            raise IdgenError(
                f"the tokenizer cuts the prompt {config.prompt!r} so that {config.token!r} is not in it exactly once"
            )
        return cls(input_ids, mask, null_ids)


def identity_prompt_embeds(
    text_encoder: CLIPTextModel, prompt: IdentityPrompt, embeddings: torch.Tensor
) -> torch.Tensor:
    """Embeddings (people, 512), raw or unit -> prompt embeddings (people, length, hidden), in the encoder's dtype.

    Each embedding is scaled to unit length and zero-padded to the encoder's hidden size; it then replaces the face's
    word, so it carries no part of the word. Differentiable. Any number of people in one pass.
    """
    hidden = text_encoder.config.hidden_size
    dim = embeddings.shape[-1]
    if dim > hidden:
        raise IdgenError(f"face embeddings of {dim} values do not fit the text encoder's hidden size of {hidden}")
    words = embed_tokens(text_encoder, prompt.input_ids.to(embeddings.device))  # (1, length, hidden)
    faces = F.pad(F.normalize(embeddings.float(), dim=-1), (0, hidden - dim))  # (people, hidden)
    return encode_embeddings(text_encoder, substitute(words, prompt.mask, faces[:, None]))


def null_prompt_embeds(text_encoder: CLIPTextModel, prompt: IdentityPrompt, device: torch.device) -> torch.Tensor:
    """Embeddings (1, length, hidden) of the empty prompt, the negative side of classifier-free guidance."""
    return encode_embeddings(text_encoder, embed_tokens(text_encoder, prompt.null_ids.to(device)))
