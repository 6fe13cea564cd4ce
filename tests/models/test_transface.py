"""TransFace: torch's own encoder as the oracle, published files, what is refused."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from idgen.errors import IdgenError
from idgen.models.transface import TransFace, load_transface

SIZES = {"dim": 16, "depth": 2, "heads": 4, "patch": 9, "patches": 144, "mlp_ratio": 4}


def build(**changes):
    torch.manual_seed(0)
    network = TransFace(**SIZES | changes).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))  # norms and biases away from one and zero
    return network


def oracle(network, faces):
    """The same from torch's TransformerEncoderLayer, norms first."""
    tokens = F.unfold(faces[..., :108, :108], 9, stride=9).transpose(1, 2)  # (batch, 144, 243)
    proj = network.patch_embed["proj"]
    tokens = tokens @ proj.weight.flatten(1).T + proj.bias + network.pos_embed
    for block in network.blocks:
        dim, hidden = block.mlp.fc2.weight.shape
        layer = nn.TransformerEncoderLayer(dim, 4, hidden, 0.0, activation=F.relu6, batch_first=True, norm_first=True)
        state = {
            "self_attn.in_proj_weight": block.attn.qkv.weight,
            "self_attn.in_proj_bias": torch.zeros(3 * dim),
            "self_attn.out_proj.weight": block.attn.proj.weight,
            "self_attn.out_proj.bias": block.attn.proj.bias,
        }
        for theirs, ours in (("linear1", block.mlp.fc1), ("linear2", block.mlp.fc2)):
            state |= {f"{theirs}.{key}": value for key, value in ours.state_dict().items()}
        for norm in ("norm1", "norm2"):
            state |= {f"{norm}.{key}": value for key, value in getattr(block, norm).state_dict().items()}
        layer.load_state_dict(state)
        tokens = layer(tokens)
    return network.norm(tokens)


def test_tokens_equal_torchs_own_encoder():
    network, faces = build(), torch.rand(2, 3, 112, 112) * 2 - 1
    tokens = network(faces)
    assert tokens.shape == (2, 144, 16)
    torch.testing.assert_close(tokens, oracle(network, faces).detach(), atol=1e-5, rtol=1e-5)


def test_the_published_size():
    with torch.device("meta"):
        network = TransFace()
    keys = network.state_dict()
    assert keys["pos_embed"].shape == (1, 144, 512) and keys["blocks.11.attn.qkv.weight"].shape == (1536, 512)
    assert network(torch.empty(1, 3, 112, 112, device="meta")).shape == (1, 144, 512)


@pytest.mark.parametrize("container", ["model.pt", "model.safetensors"])
def test_a_published_file_loads_without_its_head(tmp_path, container):
    network = build(heads=8)
    head = {"mask_token": torch.zeros(1, 1, 16), "feature.0.weight": torch.zeros(16, 2304)}
    head |= {"feature.1.num_batches_tracked": torch.tensor(7), "senet.2.weight": torch.zeros(144, 144)}
    state = network.state_dict() | head
    path = tmp_path / container
    save_file(state, path) if container.endswith("safetensors") else torch.save(state, path)
    faces = torch.rand(1, 3, 112, 112)
    assert torch.equal(load_transface(path)(faces), network(faces))


def test_other_weights_and_other_pictures_are_refused(tmp_path):
    network = build()
    with pytest.raises(IdgenError, match=r"144 patches, a face of \[128, 128\] px has 196"):
        network(torch.zeros(1, 3, 128, 128))
    path = tmp_path / "model.pt"
    torch.save(network.state_dict() | {"head.weight": torch.ones(1)}, path)
    with pytest.raises(IdgenError, match=r"1 unexpected: head\.weight"):
        load_transface(path)
    torch.save({"conv.weight": torch.ones(1)}, path)
    with pytest.raises(IdgenError, match=r"'patch_embed\.proj\.weight' is missing"):
        load_transface(path)
