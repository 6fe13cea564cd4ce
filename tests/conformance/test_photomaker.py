"""PhotoMaker v2 against the original, through the published container photomaker-v2.bin."""

import pytest
import torch

from idgen.adapters.photomaker import load_identity_fuser
from tests.conformance.golden import Golden, goldens


@pytest.mark.parametrize("folder", goldens("photomaker_v2_fuse"), ids=lambda folder: folder.name)
def test_fused_prompt_equals_the_original(folder, tmp_path):
    golden = Golden(folder)
    torch.save(
        {"id_encoder": golden.weights("adapter.id_encoder."), "lora_weights": {}}, tmp_path / "photomaker-v2.bin"
    )
    fuser = load_identity_fuser(tmp_path / "photomaker-v2.bin")
    assert fuser.qformer_perceiver.num_tokens == golden.config["qformer"]["num_tokens"]

    inputs = golden.inputs()
    prompt, mask = inputs["prompt_embeds"], inputs["class_tokens_mask"].bool()
    with torch.no_grad():
        tokens = fuser.tokens(inputs["id_embeds"][None], inputs["clip_hidden"][None])  # one person's photos
        fused = fuser(prompt, mask, tokens)
    golden.check({"tokens": tokens.unflatten(1, (golden.config["images"], -1)).flatten(0, 1), "prompt_embeds": fused})

    assert torch.equal(fused[~mask], prompt[~mask]), "rows outside the class word must not change"
    assert (fused[mask] - prompt[mask]).abs().amin(0).max() > 1e-3
