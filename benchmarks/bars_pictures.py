"""The rows of the bars that are about the pictures: diversity, sharpness, autoencoder, prompts, speed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from benchmarks.generation import generate_from_text
from benchmarks.report import Report
from idgen.evaluation.prompts import TRACKED, Prompt, choose_prompts, obeyed
from idgen.evaluation.rendered import Photos, take_photos
from idgen.faces import FaceEncoder
from idgen.identity import Identity
from idgen.metrics import (
    bootstrap_means,
    expression_spread,
    laplacian_energy,
    pixel_spread,
    pose_spread,
    psnr,
    sharpness_ratio,
)
from idgen.metrics.embedding import align, detect_landmarks, embed_at
from idgen.metrics.identity import unit
from idgen.models.probe import AttributeProbe, AttributeReader
from idgen.pipelines import Arc2FacePipeline
from idgen.rewards.ascent import guide_identity
from idgen.train.pictures import to_bytes


def add_diversity(report: Report, probe: AttributeProbe, generated: Tensor, real: Tensor, seed: int = 0) -> None:
    """Spread within a person of generated (people, images, ...) over that of as many real photos."""
    shape = generated.shape[:2]
    readings = [probe.read(images.flatten(0, 1)) for images in (generated, real)]
    spreads = {
        "pose": [pose_spread(reading.pose.unflatten(0, shape)) for reading in readings],
        "expression": [
            expression_spread(reading.probabilities["expression"].unflatten(0, shape)) for reading in readings
        ],
        "pixels": [pixel_spread(images) for images in (generated, real)],
    }
    ratios = {
        name: bootstrap_means(torch.stack(pair, 1), lambda m: m[..., 0] / m[..., 1], seed=seed).as_dict()
        for name, pair in spreads.items()
    }
    mean = sum(ratio["value"] for ratio in ratios.values()) / len(ratios)
    shown = " / ".join(f"{ratios[name]['value']:.3f}" for name in ("pose", "expression", "pixels"))
    real_means = {name: float(pair[1].mean()) for name, pair in spreads.items()}
    report.add(
        "diversity over real renders: pose / expression / pixels (mean)",
        f"{shown} ({mean:.3f})",
        "0.80",
        "0.90",
        diversity={**ratios, "mean": mean, "real_spread": real_means},
    )


def add_sharpness(report: Report, encoder: FaceEncoder, generated: Tensor, real: Photos) -> None:
    """Laplacian energy of whole pictures, and of the aligned faces alone (no background, no hair)."""
    pictures = generated.flatten(0, 1)
    whole = sharpness_ratio(pictures, real.flat)
    landmarks, seen = detect_landmarks(encoder, pictures)
    aligned = laplacian_energy(to_bytes(align(pictures[seen], landmarks[seen]))).mean()
    face = float(aligned / laplacian_energy(to_bytes(align(real.flat, real.landmarks.flatten(0, 1)))).mean())
    report.add(
        "sharpness over real renders: picture / aligned face",
        f"{whole:.3f} / {face:.3f}",
        "0.6",
        "0.9",
        sharpness={"picture": whole, "aligned_face": face},
    )


@torch.no_grad()
def reconstruct(vae: Any, images: Tensor, batch: int = 32) -> Tensor:
    """(n, height, width, 3) uint8 through any diffusers autoencoder and back, in its own dtype."""
    parameter = next(vae.parameters())
    parts = []
    for part in images.split(batch):
        pixels = (part.permute(0, 3, 1, 2).float() / 127.5 - 1).to(parameter.device, parameter.dtype)
        encoded = vae.encode(pixels)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        parts.append(to_bytes(vae.decode(latents).sample))
    return torch.cat(parts)


def compare_copies(judge: FaceEncoder, copies: Tensor, real: Photos) -> tuple[Tensor, Tensor, float]:
    """PSNR and the judge's cosine of each copy (n, height, width, 3) uint8, and the sharpness of all, beside the photos."""
    landmarks = real.landmarks.flatten(0, 1)
    cosine = (unit(embed_at(judge, copies, landmarks)) * unit(embed_at(judge, real.flat, landmarks))).sum(-1)
    return psnr(copies, real.flat), cosine, sharpness_ratio(copies, real.flat)


def add_autoencoder(report: Report, vae: Any, judge: FaceEncoder, real: Photos) -> None:
    """PSNR and the judge's cosine between each photo and its reconstruction, aligned by the same landmarks."""
    back = reconstruct(vae, real.flat)
    quality, cosine, sharpness = compare_copies(judge, back, real)
    report.add(
        f"autoencoder at {real.images.shape[2]} px: PSNR, judge cosine to the original",
        f"{quality.mean():.2f} dB, {cosine.mean():.4f}",
        "28 dB, 0.97",
        "33 dB, 0.99",
        autoencoder={
            "psnr": float(quality.mean()),
            "judge_cosine": float(cosine.mean()),
            "judge_cosine_worst_of_100": float(cosine.quantile(0.01)),
            "sharpness": sharpness,
            "images": len(back),
        },
    )
    report.add("autoencoder: sharpness over real renders", f"{sharpness:.3f}")


def add_prompts(
    report: Report,
    pipe: StableDiffusionPipeline,
    probe: AttributeProbe,
    first_person: int,
    *,
    per_value: int,
    steps: int,
    guidance: float,
    reader: AttributeReader,
    seed: int = 0,
    cache: Path | None = None,
    workers: int | None = None,
) -> None:
    """Prompt words obeyed by the text-to-face model; also guided by a reader, which does not measure."""
    prompts = choose_prompts(first_person, per_value=per_value, seed=0)
    texts = [prompt.text for prompt in prompts]
    pictures = generate_from_text(pipe, texts, steps=steps, guidance=guidance, seed=seed)
    reading = probe.read(pictures)
    shares = obeyed(prompts, reading)
    guessing = obeyed(prompts[1:] + prompts[:1], reading)
    truth = prompt_photos(prompts, cache, workers)
    ceiling = obeyed(prompts, probe.read(truth))
    report.add(
        f"prompt words obeyed, text-to-face base ({len(prompts)} prompts)",
        f"{shares['all']:.3f}",
        "0.75",
        "0.9",
        prompts={"generated": shares, "real_renders": ceiling, "guessing": guessing, "count": len(prompts)},
    )
    parts = ", ".join(f"{name} {shares[name]:.2f}" for name in (*TRACKED, "beard") if name in shares)
    report.add("prompt words obeyed, by attribute", parts)
    report.add("the same probe on real renders / on swapped prompts", f"{ceiling['all']:.3f} / {guessing['all']:.3f}")
    pictures = generate_from_text(pipe, texts, steps=steps, guidance=guidance, seed=seed, reader=reader)
    guided = obeyed(prompts, probe.read(pictures))
    parts = ", ".join(f"{name} {guided[name]:.2f}" for name in (*TRACKED, "beard") if name in guided)
    report.add("prompt words obeyed, guided by a reader", f"{guided['all']:.3f}: {parts}", "0.75", "0.9")
    report.numbers["prompts"]["guided"] = guided


def prompt_photos(prompts: Sequence[Prompt], cache: Path | None = None, workers: int | None = None) -> Tensor:
    """(prompts, height, width, 3) uint8: the shots that the prompts are captions of."""
    people = sorted({prompt.person for prompt in prompts})
    places = {person: index for index, person in enumerate(people)}
    shots = range(max(prompt.shot for prompt in prompts) + 1)
    photos = take_photos(people, shots, cache=cache, workers=workers)
    return torch.stack([photos.images[places[prompt.person], prompt.shot] for prompt in prompts])


def add_speed(
    report: Report,
    pipe: Arc2FacePipeline,
    encoder: FaceEncoder,
    *,
    steps: int,
    guidance: float,
    identity_guidance: float,
    batch: int = 4,
) -> None:
    """Seconds per image of one call with a batch, after a call that warms up; the best of three."""
    identity = Identity(torch.randn(1, 512, generator=torch.Generator().manual_seed(0)), encoder.recogniser)
    guided = guide_identity(encoder, pipe.vae, [identity], identity_guidance).guided(pipe)

    def call() -> float:
        start = time.perf_counter()
        guided(
            identity, num_inference_steps=steps, guidance_scale=guidance, num_images_per_prompt=batch, output_type="np"
        )
        return (time.perf_counter() - start) / batch

    call()
    times = [call() for _ in range(3)]
    threads = torch.get_num_threads()
    where = f"{threads} CPU threads" if pipe.device.type == "cpu" else torch.cuda.get_device_name(pipe.device)
    how = "guidance" if not identity_guidance else "guidance, by the recogniser too"
    measured = {"best": min(times), "all": times, "threads": threads, "device": str(pipe.device)}
    report.add(
        f"generation, batch {batch}, {steps} steps with {how}, {where}",
        f"{min(times):.3f} s per image",
        "1.0 s",
        "1.0 s",
    )
    what = f"batch {batch}, identity_guidance {identity_guidance:g}"
    report.numbers.setdefault("seconds_per_image", {})[what] = measured
