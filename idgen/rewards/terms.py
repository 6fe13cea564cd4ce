"""Several rewards at once: which, from where, and how much each weighs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from idgen.errors import IdgenError
from idgen.rewards.scores import Reward, Scored
from idgen.rewards.views import Asked, View

Kind = Literal["identity", "preference", "clip_aesthetic", "pick_score", "image_reward"]


class RewardTerm(BaseModel):
    """One reward. ID-Aligner weighs identity 0.2 and looks 0.001."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    source: str = Field(
        description="identity: a face encoder's name or folder; preference: a folder of train/preference.py; the published"
        " ones: a hub id, a folder, or the file of their weights"
    )
    weight: float = 1.0
    ceiling: float | None = Field(None, description="more than this counts as this: there is nothing more to gain")
    clip: str = Field("openai/clip-vit-large-patch14", description="clip_aesthetic: the CLIP beneath it")
    tokenizer: str | None = Field(None, description="pick_score, image_reward: where the tokenizer lies")


class RewardSum:
    """A weighted sum of rewards. Each is averaged over what it could tell, and then weighed.

    Args:
        terms: by name; the names are those of the log.
        device: where the networks run.

    Raises:
        IdgenError: none at all, or one whose weights do not load.
    """

    def __init__(self, terms: Mapping[str, RewardTerm], device: torch.device | str = "cpu") -> None:
        if not terms:
            raise IdgenError("no reward given: name at least one under `rewards`")
        self.terms = dict(terms)
        self.rewards = {name: build_reward(term, device) for name, term in terms.items()}

    @property
    def recognisers(self) -> list[str]:
        """The names of all recognisers in it: none of them may judge what comes of it."""
        encoders = [getattr(reward, "encoder", None) for reward in self.rewards.values()]
        return [encoder.recogniser for encoder in encoders if encoder is not None]

    def __call__(self, view: View, asked: Asked) -> dict[str, Scored]:
        """
        Raises:
            IdgenError: a reward must see whole pictures and the view is a part.
        """
        for name, reward in self.rewards.items():
            if reward.needs_whole and not view.whole:
                raise IdgenError(f"the reward {name!r} must see whole pictures: set decode to full or tiny")
        return {name: reward(view, asked) for name, reward in self.rewards.items()}

    def total(self, scored: Mapping[str, Scored]) -> Tensor:
        """What is to grow, a scalar: the weighted sum of the means."""
        parts = [term.weight * scored[name].mean(term.ceiling) for name, term in self.terms.items()]
        return torch.stack(parts).sum()

    def each(self, scored: Mapping[str, Scored]) -> Tensor:
        """The weighted sum of each picture (batch,), to rank them; below all others where a reward could not be told."""
        totals, counted = [], []
        for name, term in self.terms.items():
            values = scored[name].values
            totals.append(term.weight * (values if term.ceiling is None else values.clamp_max(term.ceiling)))
            counted.append(scored[name].counted)
        return torch.stack(totals).sum(0).masked_fill(~torch.stack(counted).all(0), float("-inf"))


def build_reward(term: RewardTerm, device: torch.device | str = "cpu") -> Reward:
    """The reward that a term names.

    Raises:
        IdgenError: its weights are missing or something else.
    """
    from idgen.rewards import looks

    if term.kind == "identity":
        from idgen.rewards.identity import IdentityReward, load_encoder

        return IdentityReward(load_encoder(term.source, device))
    if term.kind == "preference":
        return looks.PreferenceReward(Path(term.source), device)
    if term.kind == "clip_aesthetic":
        return looks.ClipAesthetic(Path(term.source), term.clip, device)
    if term.kind == "pick_score":
        return looks.PickScore(term.source, term.tokenizer, device)
    from idgen.rewards.image_reward import ImageReward

    return ImageReward(Path(term.source), term.tokenizer or "bert-base-uncased", device)
