"""PhotoMaker's identity fuser: batches, order of photos, what a file must hold."""

import pytest
import torch

from idgen.adapters.photomaker import IdentityFuser, QFormerPerceiver, load_identity_fuser, read_photomaker
from idgen.errors import IdgenError
from idgen.models.published import part

SIZES = {"cross_attention_dim": 16, "id_embeddings_dim": 12, "num_tokens": 2, "embedding_dim": 10, "ratio": 3}
SIZES |= {"depth": 2, "dim_head": 8}
LENGTH = 9


def build():
    torch.manual_seed(0)
    return IdentityFuser(**SIZES).requires_grad_(False)


def mask_at(*rows):
    mask = torch.zeros(1, LENGTH, dtype=torch.bool)
    mask[:, list(rows)] = True
    return mask


def test_a_batch_of_people_equals_each_alone():
    fuser, prompt, mask = build(), torch.randn(1, LENGTH, 16), mask_at(3, 4, 5, 6)
    faces, pictures = 20 * torch.randn(3, 2, 12), torch.randn(3, 2, 7, 10)
    together = fuser(prompt, mask, fuser.tokens(faces, pictures))
    assert together.shape == (3, LENGTH, 16)
    for person in range(3):
        alone = fuser(prompt, mask, fuser.tokens(faces[person : person + 1], pictures[person : person + 1]))
        torch.testing.assert_close(together[person : person + 1], alone)


def test_prompts_of_a_batch_may_have_their_word_in_different_places():
    fuser, prompt = build(), torch.randn(2, LENGTH, 16)
    mask = torch.cat([mask_at(1, 2), mask_at(6, 7)])
    tokens = fuser.tokens(torch.randn(2, 1, 12), torch.randn(2, 1, 7, 10))
    fused = fuser(prompt, mask, tokens)
    assert torch.equal(fused[~mask], prompt[~mask])
    for row in (slice(0, 1), slice(1, 2)):
        torch.testing.assert_close(fused[row], fuser(prompt[row], mask[row], tokens[row]))


def test_tokens_follow_photo_after_photo():
    fuser = build()
    faces, pictures = torch.randn(1, 3, 12), torch.randn(1, 3, 7, 10)
    tokens = fuser.tokens(faces, pictures)
    for photo in range(3):
        one = fuser.tokens(faces[:, photo : photo + 1], pictures[:, photo : photo + 1])
        torch.testing.assert_close(tokens[:, 2 * photo : 2 * photo + 2], one)


def test_the_prompt_given_is_left_alone():
    fuser, prompt = build(), torch.randn(1, LENGTH, 16)
    before = prompt.clone()
    fuser(prompt, mask_at(0, 1), torch.randn(1, 2, 16))
    assert torch.equal(prompt, before)


def test_a_prompt_with_too_few_rows_is_refused():
    with pytest.raises(IdgenError, match="has 2 rows in the prompt, but the photos give 4 identity tokens"):
        build()(torch.randn(1, LENGTH, 16), mask_at(3, 4), torch.randn(1, 4, 16))


def test_gradients_reach_faces_pictures_and_every_weight():
    fuser = build().requires_grad_(True)
    faces = torch.randn(1, 1, 12, requires_grad=True)
    pictures = torch.randn(1, 1, 7, 10, requires_grad=True)
    fused = fuser(torch.randn(1, LENGTH, 16), mask_at(3, 4), fuser.tokens(faces, pictures))
    (fused * torch.randn_like(fused)).sum().backward()
    assert faces.grad.abs().sum() > 0 and pictures.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in fuser.parameters())


def test_the_file_is_taken_apart_strictly(tmp_path):
    path = tmp_path / "photomaker-v2.bin"
    fuser = IdentityFuser(**SIZES | {"cross_attention_dim": 128, "dim_head": 128})
    encoder = fuser.state_dict() | {"vision_model.pre_layrnorm.weight": torch.ones(4)}
    lora = {"unet.down.lora_A.weight": torch.ones(2)}
    torch.save({"id_encoder": encoder, "lora_weights": lora}, path)

    parts = read_photomaker(path)
    assert list(parts.vision) == ["vision_model.pre_layrnorm.weight"] and list(parts.lora) == list(lora)
    assert QFormerPerceiver.sizes(part(parts.fuser, "qformer_perceiver."), "test")["ratio"] == 3
    faces, pictures = torch.randn(1, 1, 12), torch.randn(1, 1, 7, 10)
    with torch.no_grad():
        assert torch.equal(load_identity_fuser(path).tokens(faces, pictures), fuser.tokens(faces, pictures))

    broken = {key: value for key, value in encoder.items() if key != "fuse_module.mlp2.fc1.bias"}
    only_v1 = {key: value for key, value in encoder.items() if not key.startswith("qformer_perceiver.")}
    for changed, message in (
        ({"id_encoder": broken}, r"1 missing: fuse_module\.mlp2\.fc1\.bias"),
        ({"id_encoder": encoder | {"extra": torch.ones(1)}}, "unknown tensors, such as 'extra'"),
        ({"id_encoder": encoder, "optimizer": {"a": torch.ones(1)}}, "such as 'optimizer.a'"),
        ({"id_encoder": only_v1}, "v1 is not supported"),
    ):
        torch.save(changed, path)
        with pytest.raises(IdgenError, match=message):
            load_identity_fuser(path)
