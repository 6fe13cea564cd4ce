"""PuLID's encoders: structure (no golden data covers their numbers), sizes read off weights, files told apart."""

import pytest
import torch
from safetensors.torch import save_file

from idgen.adapters.pulid.encoder import LEVELS, IDEncoder, IDFormer, load_id_encoder
from idgen.errors import IdgenError

V1 = {"width": 20, "context_dim": 12, "num_token": 3, "vit_dim": 10}
V1_1 = {"width": 20, "dim": 16, "depth": 10, "dim_head": 4, "heads": 2, "num_id_token": 3, "num_queries": 6}
V1_1 |= {"output_dim": 12, "ff_mult": 2, "vit_dim": 10}


def build(kind, sizes):
    torch.manual_seed(0)
    return kind(**sizes).eval().requires_grad_(False)


def views(batch, rows):
    return [torch.randn(batch, rows, 10) for _ in range(LEVELS)]


def test_v1_gives_tokens_of_the_identity_then_one_of_each_level():
    encoder, identity, levels = build(IDEncoder, V1), torch.randn(2, 20), views(2, 8)
    tokens = encoder(identity, levels)
    assert tokens.shape == (2, 3 + LEVELS, 12)
    torch.testing.assert_close(tokens[:, :3], encoder.body(identity).reshape(2, 3, 12))
    for level in range(LEVELS):
        other = [features + (index == level) for index, features in enumerate(levels)]
        changed = (encoder(identity, other) - tokens).abs().amax((0, 2)) > 1e-6
        assert changed.nonzero().flatten().tolist() == [3 + level]


def test_v1_averages_the_patches_but_not_the_class_row():
    encoder, identity, levels = build(IDEncoder, V1), torch.randn(1, 20), views(1, 8)
    tokens = encoder(identity, levels)
    patches = torch.randperm(7) + 1
    shuffled = [torch.cat([features[:, :1], features[:, patches]], 1) for features in levels]
    torch.testing.assert_close(encoder(identity, shuffled), tokens)
    rolled = [features.roll(1, 1) for features in levels]
    assert (encoder(identity, rolled) - tokens)[:, 3:].abs().max() > 1e-3


@pytest.mark.parametrize("photos", [1, 2, 4])
def test_v1_1_gives_as_many_tokens_for_any_number_of_photos_in_any_order(photos):
    encoder, identity, levels = build(IDFormer, V1_1), torch.randn(2, photos, 20), views(2, photos * 7)
    tokens = encoder(identity, levels)
    assert tokens.shape == (2, 6, 12)
    backwards = [features.unflatten(1, (photos, 7)).flip(1).flatten(1, 2) for features in levels]
    torch.testing.assert_close(encoder(identity.flip(1), backwards), tokens, atol=1e-5, rtol=1e-5)
    alone = encoder(identity[:1], [features[:1] for features in levels])
    torch.testing.assert_close(tokens[:1], alone, atol=1e-5, rtol=1e-5)


def test_v1_1_reads_one_photo_with_or_without_its_axis():
    encoder, identity, levels = build(IDFormer, V1_1), torch.randn(2, 20), views(2, 7)
    assert torch.equal(encoder(identity, levels), encoder(identity[:, None], levels))


def test_v1_1_reads_the_levels_in_order_two_layers_each():
    """With every other level's layers silenced, the tokens depend on that level alone."""
    identity, levels = torch.randn(1, 20), views(1, 7)
    for level in range(LEVELS):
        encoder = build(IDFormer, V1_1)
        for index, layer in enumerate(encoder.layers):
            if index // 2 != level:
                layer[0].to_out.weight.zero_()
                layer[1][3].weight.zero_()
        tokens = encoder(identity, levels)
        for other in range(LEVELS):
            changed = encoder(identity, [features + (index == other) for index, features in enumerate(levels)])
            assert torch.equal(changed, tokens) == (other != level)


@pytest.mark.parametrize(("kind", "sizes", "options"), [(IDEncoder, V1, {}), (IDFormer, V1_1, {"dim_head": 4})])
def test_sizes_are_read_off_the_weights(kind, sizes, options):
    state = build(kind, sizes).state_dict()
    assert kind.sizes(state, "test", **options) == sizes


@pytest.mark.parametrize(
    ("kind", "sizes", "file"),
    [
        (IDEncoder, V1, "pulid_v1.bin"),
        (IDFormer, V1_1 | {"dim": 64, "dim_head": 64}, "pulid_v1.1.safetensors"),
    ],
)
def test_published_files_load_strictly(tmp_path, kind, sizes, file):
    encoder = build(kind, sizes)
    weights = {f"id_adapter.{key}": value for key, value in encoder.state_dict().items()}
    weights |= {"id_adapter_attn_layers.1.id_to_k.weight": torch.ones(2, 2)}
    save = save_file if file.endswith("safetensors") else torch.save
    save(weights, tmp_path / file)
    identity, levels = torch.randn(1, 20), views(1, 8)
    loaded = load_id_encoder(tmp_path / file)
    assert type(loaded) is kind and torch.equal(loaded(identity, levels), encoder(identity, levels))

    del weights["id_adapter.mapping_3.4.bias"]
    save(weights, tmp_path / file)
    with pytest.raises(IdgenError, match=r"1 missing: mapping_3\.4\.bias"):
        load_id_encoder(tmp_path / file)


def test_the_published_sizes_and_names():
    with torch.device("meta"):
        v1, v1_1 = IDEncoder().state_dict(), IDFormer().state_dict()
    assert len(v1) == 110 and v1["body.6.weight"].shape == (10240, 1024) and "mapping_patch_4.6.bias" in v1
    assert len(v1_1) == 172 and v1_1["latents"].shape == (1, 32, 1024) and v1_1["proj_out"].shape == (1024, 2048)
    assert v1_1["layers.9.0.to_kv.weight"].shape == (2048, 1024)
    assert v1_1["id_embedding_mapping.6.weight"].shape == (5120, 1024)


def test_other_weights_are_refused():
    with pytest.raises(IdgenError, match=r"a file: the tensor 'mapping_0\.6\.weight' is missing"):
        IDEncoder.sizes({}, "a file")
    with pytest.raises(IdgenError, match=r"a file: the tensor 'proj_out' is missing"):
        IDFormer.sizes(build(IDEncoder, V1).state_dict(), "a file")
