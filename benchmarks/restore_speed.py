"""What reading references costs: `python -m benchmarks.restore_speed`.

Random weights of ReF-LDM's published size, one photo of 512 px. Two tables:

* the mechanisms of ReF-LDM's table 2: seconds and largest memory of one guided step with five references laid beside the
  latents on the channels, beside them in space, or read through CacheKV;
* a whole restoration the authors' way (references as one panorama, their passes one by one and to the end, null references
  computed and attended as if they were references, attention with its matrix of scores, nothing kept, weights as torch
  lays them out), exactly the same faster, and with a stored cache. A part is timed by itself and counted as often as a
  restoration needs it; a step of either way after one of the other, medians of a few rounds.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel, VQModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor

from benchmarks.memory import largest_size
from benchmarks.report import Report, run, timed
from idgen.adapters.cachekv import CacheKV, GuidedUNet, ReferenceCache, encode_references
from idgen.adapters.cachekv.attention import self_attention_layers
from idgen.adapters.cachekv.build import build_unet, lay_out
from idgen.adapters.cachekv.concat import Conditioning, GuidedBeside, with_channels
from idgen.console import say

COUNTS = (1, 3, 5, 8)
SCALE = 1.5
MECHANISMS = ("no references", "channels", "space", "CacheKV")


@dataclass(frozen=True)
class Restorer:
    """A model without training: `unet` and `vq` of one size."""

    unet: UNet2DModel
    vq: VQModel
    size: int

    def laid_out(self) -> Restorer:
        """The same weights as the pipeline keeps them in memory."""
        unet, vq = copy.deepcopy((self.unet, self.vq))
        lay_out(unet, vq)
        return Restorer(unet, vq, self.size)


def published() -> Restorer:
    """ReF-LDM's sizes."""
    torch.manual_seed(0)
    vq = VQModel(
        block_out_channels=(128, 128, 256, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=8,
        num_vq_embeddings=8192,
        vq_embed_dim=8,
    )
    return Restorer(build_unet().eval(), vq.eval(), 512)


@dataclass
class Parts:
    """Seconds of a restoration's parts: `once` each, and of every step."""

    once: dict[str, float] = field(default_factory=dict)
    step: float = 0.0

    def total(self, steps: int) -> float:
        return sum(self.once.values()) + steps * self.step


class Published:
    """ReF-LDM's way of computing, over the same weights: nothing here is used for anything but comparison."""

    def __init__(self, model: Restorer) -> None:
        self.model = model
        self.kept: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
        self.writing = False

    def encode(self, images: Tensor) -> Tensor:
        """(1, references, 3, size, size) -> latents (1, references, channels, h, w), scores and all."""
        return encode_references(self.model.vq, images)

    def read(self, references: Tensor) -> None:
        """Keys and values of both halves of guidance, a reference at a time."""
        self.kept, self.writing = {}, True
        for one in references.unbind(1):
            both = torch.cat([torch.zeros_like(one), one])
            self.model.unet(torch.cat([both, torch.zeros_like(both)], 1), 0)
        self.writing = False

    def predict(self, noisy: Tensor, lq: Tensor, timestep: int) -> Tensor:
        sample = torch.cat([noisy, lq], 1)
        without, with_references = self.model.unet(torch.cat([sample, sample]), timestep).sample.chunk(2)
        return without + SCALE * (with_references - without)

    def __enter__(self) -> Published:
        for layer in self_attention_layers(self.model.unet):
            self.model.unet.get_submodule(layer.name).processor = _KeepAndAppend(self, layer.name)
        for module in self.model.vq.modules():
            if isinstance(module, Attention):
                module.processor = AttnProcessor()
        return self

    def __exit__(self, *error: Any) -> None:
        for part in (self.model.unet, self.model.vq):
            for module in part.modules():
                if isinstance(module, Attention):
                    module.processor = AttnProcessor2_0()


class _KeepAndAppend:
    """Self-attention with its matrix of scores, over kept keys and values as well."""

    def __init__(self, owner: Published, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, attn: Attention, hidden_states: Tensor, temb: Tensor | None = None, **_: Any) -> Tensor:
        tokens = attn.group_norm(hidden_states.flatten(2)).transpose(1, 2)
        query, key, value = attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)
        keys, values = self.owner.kept.setdefault(self.name, ([], []))
        if self.owner.writing:
            keys.append(key)
            values.append(value)
        else:
            key, value = torch.cat([key, *keys], 1), torch.cat([value, *values], 1)
        query, key, value = (attn.head_to_batch_dim(x) for x in (query, key, value))
        scores = (query * attn.scale**0.5) @ (key * attn.scale**0.5).transpose(1, 2)
        out = attn.to_out[0](attn.batch_to_head_dim(scores.softmax(-1) @ value))
        return (out.transpose(1, 2).reshape(hidden_states.shape) + hidden_states) / attn.rescale_output_factor


@dataclass(frozen=True)
class Timing:
    """How parts are timed.

    Attributes:
        steps: of a restoration.
        repeats: rounds of a step, after one that warms up.
        now: seconds.
    """

    steps: int = 50
    repeats: int = 3
    now: Callable[[], float] = time.perf_counter

    def once(self, parts: Parts, name: str, work: Callable[[], Any]) -> Any:
        start = self.now()
        result = work()
        parts.once[name] = self.now() - start
        return result

    def seconds(self, work: Callable[[], Tensor]) -> tuple[float, Tensor]:
        start = self.now()
        result = work()
        return self.now() - start, result


@torch.no_grad()
def shared_parts(model: Restorer, timing: Timing) -> dict[str, dict[str, float]]:
    """Encoding the photo and decoding the result, the authors' way and ours: the same for any number of references."""
    photo, _, latents = _inputs(model, 1)

    def both(vq: VQModel) -> dict[str, float]:
        parts = Parts()
        timing.once(parts, "photo", lambda: encode_references(vq, photo))
        timing.once(parts, "decoding", lambda: vq.decode(latents).sample)
        return parts.once

    with Published(model):
        original = both(model.vq)
    return {"original": original, "exact": both(model.laid_out().vq)}


@torch.no_grad()
def compare(model: Restorer, references: int, timing: Timing, shared: dict[str, dict[str, float]]) -> dict[str, Any]:
    """One restoration, three ways: seconds of each, and how far apart the predictions of a step are."""
    photo, others, noisy = _inputs(model, references)
    original, exact = Parts(dict(shared["original"])), Parts(dict(shared["exact"]))
    way, ours = Published(model), model.laid_out()
    kv = CacheKV(ours.unet)
    with way:
        lq = way.encode(photo)[:, 0]
        latents = timing.once(original, "references", lambda: way.encode(others))
        timing.once(original, "passes", lambda: way.read(latents))
    kv.inject()
    latents = timing.once(exact, "references", lambda: encode_references(ours.vq, others))
    cache: ReferenceCache = timing.once(exact, "passes", lambda: kv.build(latents))
    guided = timing.once(exact, "null", lambda: GuidedUNet(kv, lq, cache, SCALE))
    rounds = []
    for _ in range(1 + timing.repeats):  # one way after the other: a busy minute meets both
        with way:
            before, wanted = timing.seconds(lambda: way.predict(noisy, lq, 500))
        after, made = timing.seconds(lambda: guided(noisy, 500))
        rounds.append((before, after))
    original.step, exact.step = (statistics.median(times) for times in zip(*rounds[1:], strict=True))
    stored = Parts(dict(shared["exact"]), exact.step)
    ways = {"original": original, "exact": exact, "stored": stored}
    return {
        "references": references,
        "seconds": {name: parts.total(timing.steps) for name, parts in ways.items()},
        "relative_error": float((made - wanted).abs().max() / wanted.abs().max()),
        "parts": {name: {**parts.once, "step": parts.step} for name, parts in ways.items()},
    }


@torch.no_grad()
def mechanism(name: str, make: Callable[[], Restorer], references: int, timing: Timing) -> tuple[float, int]:
    """Seconds of a guided step, and the largest memory of a process that does nothing else (bytes)."""
    model = make()
    lay_out(model.unet, model.vq)
    noisy = _inputs(model, references)[2]
    channels, unet = noisy.shape[1], model.unet
    del model
    if name == "CacheKV":
        kv = CacheKV.of(unet)
        guided = GuidedUNet(kv, noisy, kv.build(torch.randn(1, references, *noisy.shape[1:])), SCALE)
    else:
        way: Conditioning = "channel" if name == "channels" else "spatial"
        unet = with_channels(unet, references) if way == "channel" else unet
        shown = 0 if name == "no references" else references
        guided = GuidedBeside(unet, way, noisy, torch.randn(1, shown, channels, *noisy.shape[2:]), SCALE)
    seconds = [timing.seconds(lambda: guided(noisy, 500))[0] for _ in range(1 + timing.repeats)][1:]
    return statistics.median(seconds), largest_size()


def main(argv: Sequence[str] | None = None, make: Callable[[], Restorer] = published) -> None:
    """Prints the tables; `make` takes the place of the published size."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    flags.add_argument("--references", nargs="+", type=int, default=COUNTS)
    flags.add_argument("--steps", type=int, default=50, help="of a restoration (default: 50)")
    flags.add_argument("--repeats", type=int, default=3, help="timed steps (default: 3)")
    flags.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor seconds, for a machine that does other work meanwhile (and OMP_NUM_THREADS=1)",
    )
    flags.add_argument("--json", type=Path, metavar="FILE")
    args = flags.parse_args(argv)
    threads = torch.get_num_threads()
    report = Report(f"Restoring one photo, {args.steps} guided steps, {threads} threads, {args.clock} clock")
    report.numbers["restorations"] = []
    timing = Timing(args.steps, args.repeats, time.perf_counter if args.clock == "wall" else time.process_time)
    model = make()
    with timed("the photo, and decoding"):
        shared = shared_parts(model, timing)
    for references in args.references:
        with timed(f"{references} references"):
            found = compare(model, references, timing, shared)
        report.numbers["restorations"].append(found)
        seconds = found["seconds"]
        text = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
        say(f"{references} references: {text}")
        report.add(f"{references} references", text)
        report.add(f"{references} references: largest difference", f"{found['relative_error']:.1e}", "1e-4")
        for name, floor in (("exact", "1.4"), ("stored", "2")):
            report.add(
                f"{references} references, {name}: faster", f"{seconds['original'] / seconds[name]:.2f} x", floor
            )
    report.numbers["mechanisms"] = {}
    for name in MECHANISMS:
        # A process of its own: memory that was once taken is not given back.
        with timed(name), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            seconds, memory = process.submit(mechanism, name, make, 5, timing).result()
        report.numbers["mechanisms"][name] = {"seconds": seconds, "bytes": memory}
        report.add(
            name if name == "no references" else f"five references by {name}",
            f"{seconds:.2f} s a step, {memory / 1e9:.2f} GB",
        )
    report.publish(args.json)


def _inputs(model: Restorer, references: int) -> tuple[Tensor, Tensor, Tensor]:
    """A photo (1, 1, 3, size, size), its references, and noise like its latents."""
    random = torch.Generator().manual_seed(0)
    photo = torch.rand(1, 1, 3, model.size, model.size, generator=random) * 2 - 1
    others = torch.rand(1, references, 3, model.size, model.size, generator=random) * 2 - 1
    side = model.size // 2 ** (len(model.vq.config.block_out_channels) - 1)
    return photo, others, torch.randn(1, model.unet.config.out_channels, side, side, generator=random)


if __name__ == "__main__":
    run(main)
