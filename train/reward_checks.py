"""What a training by reward is held against: figures on held-out people that no loss has seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from idgen.data.encoded import encode_identities
from idgen.data.faces import FaceFolder
from idgen.errors import IdgenError
from idgen.evaluation.prompts import read_caption
from idgen.faces import FaceEncoder
from idgen.faces.align import norm_crop
from idgen.faces.torch_backend import FAMILY
from idgen.metrics import pixel_spread
from idgen.models.probe import Reading, load_probe
from idgen.models.registry import load_recogniser
from idgen.rewards.chain import Chain
from idgen.rewards.guards import HELD_OUT, REWARD
from idgen.rewards.identity import embed_view, load_encoder
from idgen.rewards.looks import PickScore
from idgen.rewards.policies import guided
from idgen.rewards.terms import RewardSum
from idgen.rewards.views import Asked, FaceFinder, View, WholeView, vae_decoder
from idgen.train.pictures import grid, to_float, to_pil
from idgen.train.subjects import Subject
from idgen.weights import find_mini

BATCH = 16
PROBE, JUDGE = "probe", "judge"


class CheckConfig(BaseModel):
    """Pictures of held-out people, made at every validation and once by the base."""

    model_config = ConfigDict(extra="forbid")

    people: int = Field(16, ge=1)
    images: int = Field(2, ge=2, description="of each person: their difference is the diversity")
    steps: int = Field(10, ge=1, description="of sampling")
    guidance_scale: float = Field(2.0, ge=1)
    held_out: str | None = Field(
        None,
        description="a face encoder that is neither in the rewards nor the judge: name or folder; null leaves it out",
    )
    adherence: str | None = Field(
        PROBE,
        description="who reads whether prompts are obeyed: probe (the mini family's), a CLIP by hub id or folder, null",
    )


class Checks:
    """Makes the pictures and measures them.

    Args:
        held_out: photos of people of no training, whose first shot is the reference; None: pictures of `person` alone.
        person: embeddings by source of the one person that a text-to-image model learns; the prompts are those of `held_out`.

    Raises:
        IdgenError: too few photos, or a recogniser that must not be both.
    """

    def __init__(
        self,
        config: CheckConfig,
        subject: Subject,
        rewards: RewardSum,
        held_out: FaceFolder,
        embeddings: Callable[[FaceFolder, str], Tensor],
        sources: tuple[str, str | None],
        device: torch.device,
        person: Callable[[str], Tensor] | None = None,
    ) -> None:
        self.config, self.subject, self.rewards, self.device = config, subject, rewards, device
        shots = [own for own in held_out.shots if len(own) >= 2][: config.people]
        if not shots:
            raise IdgenError(
                f"nobody in {held_out.folder} has two photos: one is the reference, the others are compared with"
            )
        self.shape = (len(shots), config.images)
        asked = [own[1 + place % (len(own) - 1)] for own in shots for place in range(config.images)]
        self.prompts = [held_out.captions[photo] for photo in asked]
        self.chain = Chain(subject.pipe.scheduler, config.steps)
        conditioning, scored_by = sources
        encoder = load_encoder(scored_by or conditioning, device)
        self.look = WholeView(vae_decoder(subject.pipe.vae), FaceFinder(encoder))
        self.held_out = None if config.held_out is None else load_encoder(config.held_out, device)
        if self.held_out is not None and self.held_out.recogniser in (*rewards.recognisers, JUDGE):
            taken = "the judge" if self.held_out.recogniser == JUDGE else "rewarded"
            raise IdgenError(
                f"check.held_out is {self.held_out.recogniser!r}, which is {taken}: give another recogniser"
            )
        self.adherence = self._adherence(held_out, asked) if subject.reads_prompts else None

        def others(source: str | None) -> Tensor | None:
            if source is None:
                return None
            if person is not None:
                return person(source).expand(len(asked), -1)
            unit = F.normalize(embeddings(held_out, source), dim=1)
            return torch.stack([unit[own[1:]].mean(0) for own in shots]).repeat_interleave(config.images, 0)

        self.references, self.held_out_references = others(scored_by), others(config.held_out)
        # What the held-out recogniser gives two photos of one person, and of two.
        self.alike = None if config.held_out is None else _alike(embeddings(held_out, config.held_out), held_out.people)
        first = subject.read(embeddings(held_out, conditioning))[[own[0] for own in shots]]
        self.vectors = first.repeat_interleave(config.images, 0)
        if person is not None:
            self.vectors, self.shape = person(conditioning).expand(len(asked), -1), (1, len(asked))
        self.photos = to_float(held_out.images[[own[0] for own in shots[:8]]], device)

    @torch.no_grad()
    def __call__(self, base: bool = False) -> tuple[dict[str, float], Tensor]:
        """Figures, and the pictures (people * images, 3, h, w) in [-1, 1] that they are of."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(len(self.prompts), *self.subject.noise_shape, generator=generator).to(self.device)
        views = []
        for start in range(0, len(noise), BATCH):
            part = slice(start, start + BATCH)
            condition = self.subject.condition(self.vectors[part], self.prompts[part])
            nobody = self.subject.nobody(len(condition))
            denoise = guided(self.subject.policy, condition, nobody, self.config.guidance_scale, base=base)
            views.append(self.look(self.chain.sample(denoise, noise[part])))
        view = View(
            torch.cat([one.pictures for one in views]),
            torch.cat([one.landmarks for one in views]),
            torch.cat([one.seen for one in views]),
        )
        return self._measure(view), view.pictures

    def picture(self, made: Tensor, before: Tensor) -> Image.Image:
        """Columns of people: the reference, the base's picture and the present one."""
        shown = slice(0, 8 * self.shape[1], self.shape[1]) if self.shape[0] > 1 else slice(0, 8)
        rows = [before[shown], made[shown]]
        if self.shape[0] > 1:
            size = list(made.shape[-2:])
            rows.insert(0, F.interpolate(self.photos, size, mode="bilinear", antialias=True))
        return grid(to_pil(torch.cat(rows)), len(made[shown]))

    def _measure(self, view: View) -> dict[str, float]:
        scored = self.rewards(view, Asked(self.references, self.prompts))
        figures = {REWARD: float(self.rewards.total(scored))}
        figures |= {name: float(one.mean()) for name, one in scored.items()}
        figures["detection"] = float(view.seen.float().mean())
        pixels = ((view.pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu()
        figures["diversity"] = float(pixel_spread(pixels.unflatten(0, self.shape)).mean())
        if self.held_out is not None and self.held_out_references is not None:
            cosines = torch.zeros(len(view.seen))
            if bool(view.seen.any()):
                made, wanted = embed_view(self.held_out, view), self.held_out_references[view.seen]
                cosines[view.seen.cpu()] = F.cosine_similarity(made, wanted.to(made)).cpu()
            figures[HELD_OUT] = float(cosines.mean())  # a picture without a face is like nobody
            if self.alike is not None:
                same, different = self.alike
                figures[f"{HELD_OUT}_id_score"] = (figures[HELD_OUT] - different) / max(1e-6, same - different)
        if self.adherence is not None:
            figures["adherence"] = self.adherence(view.pictures, pixels)
        return figures

    def _adherence(self, data: FaceFolder, photos: Sequence[int]) -> Callable[[Tensor, Tensor], float] | None:
        name = self.config.adherence
        if name is None:
            return None
        if name != PROBE:
            clip = PickScore(name, device=self.device)
            return lambda pictures, _: float(clip.cosines(pictures, Asked(prompts=self.prompts)).mean())
        probe = load_probe(device=self.device)
        described = list(zip(*map(data.column, ("caption", "attributes", "person", "shot")), strict=True))
        asked = [read_caption(*described[photo]).asked for photo in photos]

        return lambda _, pixels: share_obeyed(probe.read(pixels), asked)


def _alike(embeddings: Tensor, people: np.ndarray) -> tuple[float, float]:
    """Mean cosine of a photo to the mean of the person's others, and of another person's: the ends of id_score, for means.

    Args:
        embeddings: (photos, dim) raw.
        people: (photos,) numbers.
    """
    unit = F.normalize(embeddings.float(), dim=1)
    number = torch.from_numpy(np.asarray(people)).to(unit.device)
    sums = torch.zeros(int(number.max()) + 1, unit.shape[1], device=unit.device).index_add(0, number, unit)
    counts = torch.bincount(number)[number]
    shown = counts >= 2
    same = F.cosine_similarity(unit, sums[number] - unit)[shown].mean()
    table = unit @ F.normalize(sums, dim=1).T  # (photos, people)
    table[torch.arange(len(unit)), number] = 0
    different = table.sum() / max(1, len(unit) * (len(sums) - 1))
    return float(same), float(different)


def share_obeyed(reading: Reading, asked: Sequence[Mapping[str, frozenset[str]]]) -> float:
    """The share of what prompts name that pictures show.

    Args:
        reading: of the pictures by the attribute probe.
        asked: of each picture, by attribute, the values that the prompt's words describe.
    """
    read = {name: reading.values(name) for name in reading.classes}
    kept = [
        read[name][place] in values
        for place, wishes in enumerate(asked)
        for name, values in wishes.items()
        if name in read
    ]
    return sum(kept) / max(1, len(kept))


def photo_embeddings(data: FaceFolder, source: str, device: torch.device) -> Tensor:
    """Raw embeddings (photos, dim) of a folder by a face encoder, aligned by the true landmarks; kept beside the folder where the
    recogniser is a network of idgen's own."""
    folder = _network_folder(source)
    if folder is not None:
        network = load_recogniser(folder).to(device)
        made = encode_identities(data, network, folder / "model.safetensors", device)
        return torch.from_numpy(np.asarray(made, np.float32)).to(device)
    encoder = FaceEncoder.from_pretrained(source, device=device)
    crops = [norm_crop(image, points, 112) for image, points in zip(data.images, data.landmarks, strict=True)]
    parts = [encoder.embed_aligned(np.stack(crops[start : start + 64])) for start in range(0, len(crops), 64)]
    return torch.cat(parts).float().to(device)


def _network_folder(source: str) -> Path | None:
    if source in FAMILY:
        return find_mini(FAMILY[source])
    for folder in (Path(source), Path(source) / "recogniser"):
        if (folder / "config.json").is_file():
            return folder
    return None
