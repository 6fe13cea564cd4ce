"""Methods together: IP-Adapter-FaceID keeps the face while the W+ Adapter's code is edited.

The first example of docs/composition.md is run here too; the others are tested beside their pipelines.
"""

import re
import shutil
from pathlib import Path

import pytest
import torch

from idgen.adapters.arc2face.words import load_text_base
from idgen.adapters.ip_faceid import FaceIDConfig, IPFaceIDAdapter
from idgen.adapters.wplus import WPlusConfig
from idgen.adapters.wplus.directions import LinearDirection
from idgen.imageio import load_image
from idgen.pipelines import WPlusPipeline
from tests.adapters.cases import Case, identity, random_tensor
from tests.tiny import HIDDEN, tiny_components

ROOT = Path(__file__).parents[2]
FACEID = FaceIDConfig(projection={"cross_attention_dim": HIDDEN, "num_tokens": 4}, rank=2)


@pytest.fixture
def both():
    """A pipeline with the W+ Adapter, FaceID in the same UNet, and one person as each of them takes them."""
    pipe = WPlusPipeline(
        **tiny_components(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    codes, faces = random_tensor(18, 512), identity("buffalo_l")
    wplus = Case("wplus", WPlusConfig(cross_attention_dim=HIDDEN), codes)
    faceid = Case("ip_faceid", FACEID, faces).build(pipe.unet, seed=1).inject(pipe.unet)
    for parameter in faceid.lora.parameters():
        parameter.data *= 0.1
    return pipe.load_wplus(wplus.build(pipe.unet)), faceid, codes(0), faces(0)


def test_faceid_keeps_the_face_while_the_code_is_edited(both):
    pipe, faceid, w, anna = both
    older = LinearDirection(torch.randn(1, 512, generator=torch.Generator().manual_seed(2)))

    def latents(person=None, **options):
        others = faceid.condition(person, images=2).kwargs if person is not None else None
        generator = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 5, "num_images_per_prompt": 2, "generator": generator} | options
        return pipe(w, "photo of a woman", cross_attention_kwargs=others, output_type="latent", **options).images

    def differ(one, other):
        return bool((one - other).abs().max() > 1e-3)

    together, edited = latents(anna), latents(anna, edits=[(older, 2.0)])
    assert together.isfinite().all() and differ(together, edited), "the edit acts beside FaceID"
    assert differ(together, latents()) and differ(edited, latents(edits=[(older, 2.0)])), "and FaceID beside the edit"
    assert differ(together, latents(anna, scale=0.0)), "as does the code"
    assert torch.equal(edited, latents(anna, edits=[(older, 2.0)]))

    # The pipeline only carries FaceID along: without it, and after it has left, a call is the W+ Adapter's alone.
    alone = latents()
    faceid.eject()
    assert torch.equal(latents(), alone)
    assert differ(alone, latents(edits=[(older, 2.0)]))


def test_the_delay_is_the_codes_alone(both):
    pipe, faceid, w, anna = both
    conditioning = faceid.condition(anna)
    run = {"num_inference_steps": 4, "output_type": "latent", "cross_attention_kwargs": conditioning.kwargs}

    def latents(**options):
        return pipe(w, "photo of a woman", generator=torch.Generator().manual_seed(0), **run, **options).images

    rests = latents(start_step=4)
    assert torch.equal(rests, latents(scale=0.0)), "FaceID acts while the W+ Adapter rests"
    assert not torch.allclose(rests, latents(start_step=1), atol=1e-3)


def test_one_method_alone_draws_with_an_adapter_file_as_the_docs_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unet = load_text_base("mini").unet
    width = unet.config.cross_attention_dim
    fresh = FaceIDConfig(recogniser="mini", projection={"cross_attention_dim": width, "num_tokens": 4}, rank=2)
    IPFaceIDAdapter.for_unet(unet, fresh).save("runs/mini/adapter/weights/adapter.safetensors")
    for number in (1, 2):  # PNG under the names of the docs: a photo is told by its content
        shutil.copy(ROOT / "examples" / "person_900007" / f"{number}.png", f"anna{number}.jpg")
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "composition.md").read_text(), re.DOTALL)
    assert len(examples) == 5
    exec(compile(examples[0], "docs/composition.md", "exec"), {})
    assert load_image("anna.png").size == (128, 128)
