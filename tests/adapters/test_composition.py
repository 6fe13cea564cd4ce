"""Methods together: IP-Adapter-FaceID keeps the face while the W+ Adapter's code is edited.

The other examples of docs/composition.md are tested beside their pipelines.
"""

import ast
import re
from pathlib import Path

import pytest
import torch

from idgen.adapters.ip_faceid import FaceIDConfig
from idgen.adapters.wplus import WPlusConfig
from idgen.adapters.wplus.directions import LinearDirection
from idgen.pipelines import WPlusPipeline
from tests.adapters.cases import Case, identity, random_tensor
from tests.tiny import HIDDEN, tiny_components

FACEID = FaceIDConfig(projection={"cross_attention_dim": HIDDEN, "num_tokens": 4}, rank=2)


@pytest.fixture
def both():
    """A pipeline with the W+ Adapter, FaceID in the same UNet, and one person as each of them takes them."""
    pipe = WPlusPipeline(
        **tiny_components(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    codes, faces = random_tensor(18, 512), identity("w600k_r50")
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


def test_the_examples_of_the_docs_import_what_there_is():
    page = (Path(__file__).parents[2] / "docs" / "composition.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 4
    for code in examples:
        imports = [node for node in ast.parse(code).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        exec(compile(ast.Module(imports, []), "docs/composition.md", "exec"), {})
