"""Trains a generator by reward: `accelerate launch train/reward.py --config configs/mini/reward.yaml`.

ID-Aligner (Chen et al., arXiv 2404.15449) with the algorithms of `idgen.rewards.algorithms`: pictures are made with gradients (or
ranked without), looked at by a recogniser and by heads of looks, and what they say trains a LoRA or an identity adapter. The base
holds it by an anchor; figures that no loss has seen end the training when the reward is all that still grows
(`idgen.rewards.guards`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor

from idgen.data.faces import FaceFolder
from idgen.errors import IdgenError
from idgen.files import atomic_write
from idgen.finetune import FinetuneConfig
from idgen.losses.diffusion import Noised, add_noise, denoising_loss, noised_at
from idgen.rewards.algorithms import AlgorithmConfig
from idgen.rewards.anchor import Anchor, anchor_loss
from idgen.rewards.chain import Chain
from idgen.rewards.guards import GuardConfig, Guards
from idgen.rewards.identity import load_encoder
from idgen.rewards.policies import Condition, Policy, guided
from idgen.rewards.ranking import dpo_loss, drift_loss, extremes, take, unet_features
from idgen.rewards.terms import RewardSum, RewardTerm
from idgen.rewards.views import Asked, CropView, FaceFinder, WholeView, vae_decoder
from idgen.train.checkpoints import damage, newest_first
from idgen.train.config import TrainConfig
from idgen.train.loop import Batch, Stage, run
from idgen.train.picture_coding import encode_photos, load_tiny
from idgen.train.prompt_cache import of_pictures
from idgen.train.reward_checks import CheckConfig, Checks, photo_embeddings
from idgen.train.subjects import FILE, AdapterSubject, Arc2FaceSubject, Subject, TextSubject

FEATURE_TIMESTEP = 100  # at which DrPO's frozen UNet looks at clean latents, as its authors have it


class RewardTrainConfig(TrainConfig):
    """Settings of train/reward.py."""

    subject: Literal["arc2face", "text", "ip_faceid", "instantid"] = Field(description="what is trained")
    model: str = Field(
        "mini", description="of arc2face: mini, a hub id or folder; else Stable Diffusion or SDXL, likewise"
    )
    base: str | None = Field(None, description="arc2face in the published layout: the Stable Diffusion it came from")
    finetune: FinetuneConfig = Field(FinetuneConfig(rank=16), description="arc2face, text: the adapter in the UNet")
    adapter: Path | None = Field(None, description="an adapter's weights; null starts from fresh ones")
    adapter_rank: int = Field(16, ge=0, description="ip_faceid, fresh: of its low-rank change")
    data: Path = Field(description="folder of `idgen synth`")
    validation: Path = Field(description="folder of `idgen synth` with people of no training")
    person: int | None = Field(None, description="text: whose LoRA this is, the number in the metadata of `data`")
    conditioning: str = Field("mini", description="the face encoder whose embeddings condition the generator")
    rewards: dict[str, RewardTerm] = Field(description="by name")
    algorithm: AlgorithmConfig = AlgorithmConfig()
    guidance_scale: float = Field(1.0, ge=1, description="of the pictures that are rewarded")
    decode: Literal["full", "tiny", "crop"] = Field("full", description="what the reward's gradient passes through")
    tiny: str | None = Field(
        None, description="a small decoder: folder of train/tiny_decoder.py, or an AutoencoderTiny"
    )
    reward_weight: float = Field(1.0, ge=0)
    denoising_weight: float = Field(0.0, ge=0, description="of plain training on the photos beside it")
    anchor: Anchor = "mse"
    anchor_weight: float = Field(0.0, ge=0, description="of the distance from the base")
    condition_dropout: float = Field(
        0.1, ge=0, le=1, description="plain training and the anchor: rows that ask for nothing"
    )
    check: CheckConfig = CheckConfig()
    guards: GuardConfig = GuardConfig()

    def shrunk(self) -> RewardTrainConfig:
        small = self.check.model_copy(update={"people": 2, "images": 2, "steps": 2})
        algorithm = self.algorithm.model_copy(update={"steps": 2, "last_steps": min(2, self.algorithm.last_steps)})
        return super().shrunk().model_copy(update={"check": small, "algorithm": algorithm})


class RewardStage(Stage[RewardTrainConfig]):
    """A policy, its rewards and its guards."""

    module: Policy
    shardable = False

    def __init__(self, config: RewardTrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.rewards = RewardSum(config.rewards, device)
        self.data, held_out = FaceFolder.open(config.data), FaceFolder.open(config.validation)
        self.subject = build_subject(config, device)
        self.module = self.subject.policy
        self.start = [parameter.detach().clone() for parameter in self.module.parameters()]
        pipe = self.subject.pipe
        self.chain = Chain(pipe.scheduler, config.algorithm.steps)
        embeddings = partial(photo_embeddings, device=device)
        identity = [term.source for term in config.rewards.values() if term.kind == "identity"]
        if len(identity) > 1:
            raise IdgenError(
                "rewards: one identity reward is enough, its references are one recogniser's: leave the others out"
            )
        scored_by = identity[0] if identity else None
        self.look = build_look(config, pipe, FaceFinder(load_encoder(scored_by or config.conditioning, device)), device)
        self.photos = self._photos()
        self.vectors = self.subject.read(embeddings(self.data, config.conditioning))
        self.targets = None if scored_by is None else F.normalize(embeddings(self.data, scored_by), dim=1)
        self.latents = encode_photos(self.data, pipe.vae, self.subject.vae_file, device) if self._plain else None

        def person(source: str) -> Tensor:
            return F.normalize(embeddings(self.data, source), dim=1)[self.photos].mean(0)

        self.checks = Checks(
            config.check,
            self.subject,
            self.rewards,
            held_out,
            embeddings,
            (config.conditioning, scored_by),
            device,
            person if config.person is not None else None,
        )
        self.guards, self.shown = Guards(config.guards), torch.empty(0)
        # The step of the checkpoint that training goes on from, and the batches since.
        self.begun, self.batches = _newest_step(config.output_dir) if config.resume else 0, 0
        self._remember()

    def batch(self, rng: np.random.Generator) -> Batch:
        count = self.config.train_batch_size
        chosen = rng.choice(self.photos, count, replace=len(self.photos) < count)
        vectors, targets = [], []
        for photo in chosen:
            own = self.data.shots[self.data.people[photo]]
            others = own[own != photo]
            some = rng.choice(others, min(len(others), int(rng.integers(1, 5))), replace=False)
            vectors.append(self.subject.read(self.vectors[some].mean(0)))
            if self.targets is not None:
                targets.append(self.targets[own].mean(0))
        batch: Batch = {
            "ids": [self.data.name(int(photo)) for photo in chosen],
            "vectors": torch.stack(vectors),
            "prompts": [self.data.captions[photo] for photo in chosen],
            "targets": torch.stack(targets) if targets else None,
            "dropped": torch.from_numpy(rng.random(count) < self.config.condition_dropout).to(self.device),
        }
        if self.latents is not None:
            batch["latents"] = torch.from_numpy(self.latents[chosen]).to(self.device).float()
        return batch

    def losses(self, model: Callable[..., Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        self.batches += 1
        config, condition = self.config, self.subject.condition(batch["vectors"], batch["prompts"])
        losses: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.device)
        if config.algorithm.needs_gradient:
            losses |= self._by_gradient(model, condition, Asked(batch["targets"], batch["prompts"]))
            total = total - config.reward_weight * losses["reward"]
        elif config.algorithm.ranks:
            losses |= self._by_rank(model, condition, Asked(batch["targets"], batch["prompts"]))
            total = total + config.reward_weight * losses["ranked"]
        if "latents" in batch:
            plain, anchor = self._plainly(model, condition, batch)
            losses |= {"denoising": plain} | ({"anchor": anchor} if anchor is not None else {})
            total = total + self._denoising_weight * plain
            if anchor is not None:
                total = total + config.anchor_weight * anchor
        return {"loss": total, **losses}

    def _by_gradient(self, model: Callable[..., Tensor], condition: Condition, asked: Asked) -> dict[str, Tensor]:
        noise = torch.randn(len(condition), *self.subject.noise_shape, device=self.device)
        denoise = guided(model, condition, self.subject.nobody(len(condition)), self.config.guidance_scale)
        latents = self.config.algorithm.latents(denoise, self.chain, noise)
        view = self.look(latents)
        scored = self.rewards(view, asked.repeat(len(latents) // len(condition)))
        means = {name: one.mean() for name, one in scored.items()}
        return {"reward": self.rewards.total(scored), "faces": view.seen.float().mean(), **means}

    def _by_rank(self, model: Callable[..., Tensor], condition: Condition, asked: Asked) -> dict[str, Tensor]:
        config, count, people = self.config.algorithm, self.config.algorithm.candidates, len(condition)
        many = condition.map(lambda part: part.repeat_interleave(count, 0))
        references = None if asked.references is None else asked.references.repeat_interleave(count, 0)
        wishes = Asked(references, [prompt for prompt in asked.prompts for _ in range(count)])
        noise = torch.randn(len(many), *self.subject.noise_shape, device=self.device)
        denoise = guided(model, many, self.subject.nobody(len(many)), self.config.guidance_scale)
        last = len(self.chain) - 1
        with torch.no_grad():
            noisy = self.chain.walk(denoise, noise, last=last)
            clean = self.chain.walk(denoise, noisy, first=last)
            view = self.look(clean)
            scored = self.rewards(view, wishes)
            scores = self.rewards.each(scored).unflatten(0, (people, count))
        told = {"faces": view.seen.float().mean(), "reward": self.rewards.total(scored)}
        best, worst = extremes(scores, config.chosen if config.name == "drpo" else 1)
        # Of a person of whom too few pictures could be told anything, nothing is learned.
        usable = (scores > float("-inf")).sum(1) >= (config.chosen if config.name == "drpo" else 1)
        learns = bool(usable.any())
        if not learns:  # the same passes all the same: other processes make them too, and wait for this one's gradients
            usable = torch.ones_like(usable)
        groups = clean.unflatten(0, (people, count))
        if config.name == "drpo":
            made = self.chain.walk(denoise, noisy, first=last)
            ranked = self._drift(made, many, best, worst, usable)
        elif config.name == "dpo":
            pair = torch.cat([take(groups, best)[usable, 0], take(groups, worst)[usable, 0]])
            ranked = self._prefer(model, condition.map(lambda part: part[usable]), pair)
        else:
            places = best if config.name == "winners" else worst
            noised = add_noise(self.subject.pipe.scheduler, take(groups, places)[usable, 0])
            kept = condition.map(lambda part: part[usable])
            ranked = denoising_loss(model(noised.noisy, noised.timesteps, kept), noised)
        return told | {"ranked": ranked if learns else ranked * 0}

    def _prefer(self, model: Callable[..., Tensor], condition: Condition, pair: Tensor) -> Tensor:
        """Diffusion-DPO on better and worse latents (2 * people, ...): both at the same noise and time."""
        drawn = add_noise(self.subject.pipe.scheduler, pair[: len(pair) // 2])
        noise, times = torch.randn_like(drawn.noisy).repeat(2, 1, 1, 1), drawn.timesteps.repeat(2)
        noised = noised_at(self.subject.pipe.scheduler, pair, noise, times)
        both = condition.join(condition)
        better, worse = _errors(model(noised.noisy, noised.timesteps, both), noised).chunk(2)
        with torch.no_grad():
            base_better, base_worse = _errors(model(noised.noisy, noised.timesteps, both, base=True), noised).chunk(2)
        return dpo_loss(better, worse, base_better, base_worse, self.config.algorithm.beta)

    def _drift(self, made: Tensor, condition: Condition, best: Tensor, worst: Tensor, usable: Tensor) -> Tensor:
        """DrPO over the candidates' features in the frozen base."""
        policy, shape = self.subject.policy, (len(best), self.config.algorithm.candidates)
        time = torch.full((len(made),), FEATURE_TIMESTEP, device=self.device)
        parts = []
        for features in unet_features(policy.unet, lambda: policy(made, time, condition, base=True)):
            rows = features.unflatten(0, shape)[usable]  # (people, candidates, patches, channels)
            good, bad = (take(rows, places[usable]).transpose(1, 2).flatten(0, 1) for places in (best, worst))
            parts.append(drift_loss(rows.transpose(1, 2).flatten(0, 1), good.detach(), bad.detach()).mean())
        return torch.stack(parts).mean()

    def _plainly(
        self, model: Callable[..., Tensor], condition: Condition, batch: Batch
    ) -> tuple[Tensor, Tensor | None]:
        noised = add_noise(self.subject.pipe.scheduler, batch["latents"])
        condition = condition.where(batch["dropped"], self.subject.nobody(len(condition)))
        condition = of_pictures(self.subject.pipe, condition, batch["latents"])
        answer = model(noised.noisy, noised.timesteps, condition)
        plain = denoising_loss(answer, noised)
        if not self.config.anchor_weight:
            return plain, None
        with torch.no_grad():
            base = model(noised.noisy, noised.timesteps, condition, base=True)
        scheduler = self.subject.pipe.scheduler
        return plain, anchor_loss(answer, base, noised.timesteps, scheduler, self.config.anchor)

    def models(self) -> list[torch.nn.Module]:
        return [self.subject.policy.unet]

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        if not self.guards.history or not len(self.shown):
            figures, self.shown = self.checks(base=True)
            if not self.guards.history:
                self.guards.check({"step": 0, **figures})
            if self.step == 0:  # before the first step there is nothing else to see
                self._write()
                return figures, self.checks.picture(self.shown, self.shown)
        figures, made = self.checks()
        self.stopped = self.guards.check({"step": self.step, **figures})
        self._write()
        base = self.guards.history[0]
        gains = {f"{name}_gain": value - base[name] for name, value in figures.items() if name in base}
        return figures | gains, self.checks.picture(made, self.shown)

    def _write(self) -> None:
        with atomic_write(self._file) as temporary:
            temporary.write_text(json.dumps({"stopped": self.stopped, "history": self.guards.history}, indent=1) + "\n")

    def save(self, folder: Path) -> None:
        history, act = self.guards.history, self.config.guards.act
        if act and (not history or history[-1]["step"] != self.step):
            return  # the validation did not fit into memory: what these weights are worth is not known
        best = self.guards.best if act else len(history) - 1
        if best == len(history) - 1:
            self.module.save(folder / FILE, self.rewards.recognisers)
        elif best == 0 or not (folder / FILE).exists():  # nothing that was learned is worth its price
            parameters = list(self.module.parameters())
            now = [parameter.detach().clone() for parameter in parameters]
            _fill(parameters, self.start)
            self.module.save(folder / FILE, self.rewards.recognisers)
            _fill(parameters, now)

    def load(self, folder: Path) -> None:
        self.module.load(folder / FILE)

    @property
    def step(self) -> int:
        """Of the optimiser, so far."""
        return self.begun + self.batches // self.config.gradient_accumulation_steps

    @property
    def _file(self) -> Path:
        return self.config.output_dir / "guards.json"

    @property
    def _denoising_weight(self) -> float:
        return self.config.denoising_weight or float(self.config.algorithm.name == "mse")

    @property
    def _plain(self) -> bool:
        return bool(self._denoising_weight or self.config.anchor_weight)

    def _photos(self) -> np.ndarray:
        """Those that are trained on, of people with at least two."""
        numbers = np.array([int(row["person"]) for row in self.data.rows])
        counts = np.bincount(self.data.people)[self.data.people]
        usable = (counts >= 2) & (numbers == self.config.person if self.config.person is not None else True)
        if not usable.any():
            who = "nobody" if self.config.person is None else f"no person {self.config.person}"
            raise IdgenError(f"{who} in {self.config.data} has two photos: one is asked for, the others say who it is")
        return np.flatnonzero(usable)

    def _remember(self) -> None:
        """What the guards saw before a training was interrupted. Checks that came after the checkpoint are made again."""
        if not (self.config.resume and self._file.exists()):
            return
        try:
            stored = json.loads(self._file.read_text())
            rows, stopped = stored["history"], stored["stopped"]
            self.guards.history = [row for row in rows if row["step"] <= self.step]
        except (ValueError, KeyError, TypeError) as error:
            raise IdgenError(
                f"{self._file} is damaged, or of an earlier version: remove it, or start with --resume false"
            ) from error
        if self.config.guards.act and len(self.guards.history) == len(rows):
            self.stopped = stopped


def build_subject(config: RewardTrainConfig, device: torch.device) -> Subject:
    """What `config.subject` names.

    Raises:
        IdgenError: settings that do not go together, or weights that do not load.
    """
    if (config.person is None) == (config.subject == "text"):
        raise IdgenError("subject: text trains one person's LoRA and needs `person`; the others train for everybody")
    if config.subject == "arc2face":
        return Arc2FaceSubject(config.model, config.base, config.finetune, device)
    if config.subject == "text":
        return TextSubject(config.model, config.finetune, device)
    settings = {"rank": config.adapter_rank} if config.subject == "ip_faceid" else {}
    recogniser = load_encoder(config.conditioning).recogniser
    return AdapterSubject(config.model, config.subject, config.adapter, recogniser, settings, device)


def build_look(config: RewardTrainConfig, pipe: Any, finder: FaceFinder, device: torch.device) -> WholeView | CropView:
    """How rewards see latents, as `config.decode` says.

    Raises:
        IdgenError: tiny without a small decoder, or one that does not load.
    """
    full = vae_decoder(pipe.vae)
    tiny = None if config.tiny is None else load_tiny(config.tiny, device)
    if config.decode == "crop":
        return CropView(full, finder, tiny)
    if config.decode == "full":
        return WholeView(full, finder)
    if tiny is None:
        raise IdgenError(
            "decode: tiny needs a small decoder: train one with train/tiny_decoder.py and name it as `tiny`"
        )
    return WholeView(tiny, finder)


def _newest_step(folder: Path) -> int:
    """Of the newest checkpoint that is whole; 0 without one."""
    whole = (path for path in newest_first(folder) if damage(path) is None)
    return next((int(path.name.rpartition("-")[2]) for path in whole), 0)


def _errors(answer: Tensor, noised: Noised) -> Tensor:
    return (answer.float() - noised.target).pow(2).mean((1, 2, 3))


@torch.no_grad()
def _fill(parameters: list[torch.nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


if __name__ == "__main__":
    run(RewardStage, RewardTrainConfig)
