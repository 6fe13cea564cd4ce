"""PVA against the original, through the published container FPIP.bin."""

import pytest
import torch

from idgen.adapters.pva.transform import TransformNetwork, face_crop
from idgen.checkpoint import load_strict, load_weights
from idgen.models.published import part
from tests.conformance.golden import Golden, goldens


@pytest.mark.parametrize("folder", goldens("pva_transform_network"), ids=lambda folder: folder.name)
def test_visual_tokens_equal_the_original(folder, tmp_path):
    golden = Golden(folder)
    modifier = torch.zeros(golden.config["transformer"]["out_dim"])
    torch.save({"modifier_vec": modifier, "transform_network": golden.weights()}, tmp_path / "FPIP.bin")

    state = part(load_weights(tmp_path / "FPIP.bin"), "transform_network.")
    sizes = TransformNetwork.sizes(state, "FPIP.bin")
    assert sizes == golden.config["transformer"]
    network = TransformNetwork(**sizes).eval()
    load_strict(network, state, "FPIP.bin")

    inputs = golden.inputs()
    results = {"face_crop": face_crop(inputs["face"])}
    with torch.no_grad():
        for name, embeddings in inputs.items():
            if name.startswith("id_feat."):
                results[f"tokens.{name.removeprefix('id_feat.')}"] = network(embeddings)
    golden.check(results)
