"""InstantID against the original, through the published container ip-adapter.bin."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from idgen.adapters.instantid.keypoints import draw_keypoints
from idgen.checkpoint import load_strict, load_weights
from idgen.models.published import part
from idgen.models.resampler import Resampler
from tests.conformance.golden import Golden, goldens


@pytest.mark.parametrize("folder", goldens("instantid_resampler"), ids=lambda folder: folder.name)
def test_face_tokens_equal_the_original(folder, tmp_path):
    golden = Golden(folder)
    inputs = golden.inputs()
    torch.save({"image_proj": golden.weights("adapter.image_proj."), "ip_adapter": {}}, tmp_path / "ip-adapter.bin")

    state = part(load_weights(tmp_path / "ip-adapter.bin"), "image_proj.")
    sizes = Resampler.sizes(state, "ip-adapter.bin", dim_head=golden.config["resampler"]["dim_head"])
    assert sizes == golden.config["resampler"]
    resampler = Resampler(**sizes).eval()
    load_strict(resampler, state, "ip-adapter.bin")

    one, several = inputs["embedding"], inputs["embeddings"]
    with torch.no_grad():
        results = {
            "single": resampler(one[:, None]),
            "multi_reference": resampler(several[None]),
            "batch": resampler(several[:, None]),
            "zeros": resampler(torch.zeros_like(one)[:, None]),
            "unit_norm_input": resampler(F.normalize(one, dim=-1)[:, None]),
        }
    golden.check(results)
    assert (results["unit_norm_input"] - results["single"]).abs().max() > 1e-2, "raw and unit embeddings must differ"


@pytest.mark.parametrize("folder", goldens("instantid_keypoints_image"), ids=lambda folder: folder.name)
def test_keypoints_picture_equals_the_original(folder):
    golden = Golden(folder)
    inputs = golden.inputs()
    results = {}
    for index, size in enumerate(golden.config["size_wh"]):
        picture = draw_keypoints(inputs[f"kps.{index}"].numpy(), tuple(size))
        results[f"image.{index}"] = torch.from_numpy(np.array(picture))
    golden.check(results)
