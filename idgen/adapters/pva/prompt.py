"""PVA's word for a person: "photo of a <new1> person", in which a learned vector stands for "<new1>".

Its authors give the tokenizer and the text encoder a row for the word. Here neither is touched, so that one text encoder serves
any number of personalised models: the word is cut out before the tokens are looked up, and the vector put in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from idgen.adapters.injections.prompt_token import embed_tokens, encode_embeddings, substitute
from idgen.errors import IdgenError

PLACEHOLDER = "<new1>"
PROMPT, NEGATIVE = f"photo of a {PLACEHOLDER} person", "photo of a person"


@dataclass(frozen=True)
class PersonPrompts:
    """Tokenised prompts.

    Attributes:
        input_ids: (prompts, length); what stands at the person's word is never looked at.
        mask: (prompts, length) True at the person's word.
    """

    input_ids: Tensor
    mask: Tensor

    @classmethod
    def tokenise(
        cls, tokenizer: CLIPTokenizer, prompts: Sequence[str], placeholder: str = PLACEHOLDER
    ) -> PersonPrompts:
        """
        Raises:
            IdgenError: a prompt is so long that the person's word is cut off.
        """
        length = tokenizer.model_max_length
        start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        # What the tokenizer itself fills up with: CLIP's ends again, Stable Diffusion 2's has another token.
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
        ids = torch.full((len(prompts), length), pad, dtype=torch.long)
        mask = torch.zeros(len(prompts), length, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            tokens: list[int | None] = []
            for index, piece in enumerate(prompt.split(placeholder)):
                tokens += [None] * (index > 0)
                tokens += tokenizer(piece, add_special_tokens=False).input_ids if piece.strip() else []
            if None in tokens[length - 2 :]:
                raise IdgenError(
                    f"the prompt is too long: {placeholder!r} is cut off; it must be among the first {length - 2} tokens"
                )
            whole = [start, *tokens[: length - 2], end]
            ids[row, : len(whole)] = torch.tensor([start if token is None else token for token in whole])
            mask[row, : len(whole)] = torch.tensor([token is None for token in whole])
        return cls(ids, mask)


def encode_prompts(text_encoder: CLIPTextModel, prompts: PersonPrompts, modifier: Tensor) -> Tensor:
    """(prompts, length, hidden) what the UNet reads. Differentiable in `modifier`.

    Args:
        modifier: (hidden,) the vector that stands for the person, `PVAAdapter.modifier`.
    """
    device = modifier.device
    words = embed_tokens(text_encoder, prompts.input_ids.to(device))
    vectors = modifier.expand(*prompts.mask.shape, -1)
    return encode_embeddings(text_encoder, substitute(words, prompts.mask, vectors))
