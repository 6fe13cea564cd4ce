"""The identity tokens of IP-Adapter-FaceID (plain, Plus, Plus-v2) and FACT against the originals, from published containers.

What the tokens do in a UNet is compared in the methods' own files.
"""

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from idgen.checkpoint import load_strict, load_weights
from idgen.models.face_projections import FaceIDPlusProjection, FaceIDProjection
from idgen.models.published import part
from idgen.models.resampler import Resampler
from tests.conformance.golden import Golden, goldens


@pytest.mark.parametrize("folder", goldens("ipa_faceid_sd15"), ids=lambda folder: folder.name)
def test_faceid_tokens_equal_the_original(folder, tmp_path):
    golden = Golden(folder)
    state = published(tmp_path, golden, "image_proj.")
    projection = loaded(FaceIDProjection(**FaceIDProjection.sizes(state, "image_proj")), state)

    face = golden.inputs()["id_embedding"]
    assert projection.num_tokens == golden.config["num_tokens"]
    check_tokens(
        golden,
        {
            "image_embeds": projection(F.normalize(face, dim=-1)),
            "uncond_image_embeds": projection(torch.zeros_like(face)),
        },
    )


@pytest.mark.parametrize("folder", goldens("ipa_faceid_plusv2_sd15"), ids=lambda folder: folder.name)
def test_faceid_plus_tokens_equal_the_original(folder, tmp_path):
    golden = Golden(folder)
    state = published(tmp_path, golden, "image_proj.")
    projection = loaded(FaceIDPlusProjection(**FaceIDPlusProjection.sizes(state, "image_proj")), state)
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**golden.config["clip_vision"])).eval()
    clip.save_pretrained(tmp_path / "clip", safe_serialization=True)
    torch.save(golden.weights("image_encoder."), tmp_path / "clip" / "pytorch_model.bin")
    (tmp_path / "clip" / "model.safetensors").unlink()
    clip = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "clip").eval()

    inputs = golden.inputs()
    face, pixels = F.normalize(inputs["id_embedding"], dim=-1), inputs["clip_pixels"]
    seen, nothing = (
        clip(picture, output_hidden_states=True).hidden_states[-2] for picture in (pixels, torch.zeros_like(pixels))
    )
    results = {"clip_hidden": seen, "clip_hidden_uncond": nothing}
    for name in golden.meta["outputs"]:
        kind, _, tag = name.partition(".")
        if kind in ("image_embeds", "uncond_image_embeds"):
            given = (face, seen) if kind == "image_embeds" else (torch.zeros_like(face), nothing)
            options = {} if tag == "noshortcut" else {"s_scale": float(tag.removeprefix("shortcut_s"))}
            results[name] = projection(*given, shortcut=tag != "noshortcut", **options)
    assert len(results) > 4
    check_tokens(golden, results)


@pytest.mark.parametrize("folder", goldens("fact_sd15"), ids=lambda folder: folder.name)
def test_fact_tokens_equal_the_original(folder, tmp_path):
    golden = Golden(folder)
    state = published(tmp_path, golden, "local_fac_prj.")
    sizes = Resampler.sizes(state, "local_fac_prj", dim_head=golden.config["resampler"]["dim_head"])
    assert sizes == golden.config["resampler"]
    resampler = loaded(Resampler(**sizes), state)

    results = {}
    for name, features in golden.inputs().items():
        kind, _, count = name.partition(".")
        if kind == "face_features":  # the references' tokens follow one another
            results[f"face_tokens.{count}"] = resampler(features).flatten(0, 1)[None]
            results[f"neg_face_tokens.{count}"] = resampler(torch.zeros_like(features)).flatten(0, 1)[None]
    assert results
    check_tokens(golden, results)


def published(folder, golden, prefix):
    """One part of the adapter's file: a pickle with the dicts image_proj and ip_adapter, or (FACT) a flat one."""
    weights = golden.weights("adapter.")
    names = ("image_proj", "ip_adapter")
    if all(key.startswith(names) for key in weights):
        weights = {name: part(weights, f"{name}.") for name in names}
    torch.save(weights, folder / "adapter.bin")
    return part(load_weights(folder / "adapter.bin"), prefix)


def loaded(module, state):
    load_strict(module, state, "published weights")
    return module.requires_grad_(False).eval()


def check_tokens(golden, results):
    lines = [golden.difference(name, value.numpy(force=True)) for name, value in results.items()]
    assert not any(lines), "\n".join(lines)
