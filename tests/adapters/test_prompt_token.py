"""Prompt-token substitution against an independent oracle: the same face written into the word's embedding table."""

import copy
import threading

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers.hooks import apply_group_offloading

from idgen.adapters.arc2face import Arc2FaceConfig, IdentityPrompt, identity_prompt_embeds, null_prompt_embeds
from idgen.adapters.injections.prompt_token import embed_tokens, encode_embeddings, substitute
from idgen.errors import IdgenError
from tests.tiny import tiny_text_encoder, tiny_tokenizer

CONFIG = Arc2FaceConfig()


def build(hidden=512, length=16):
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(length=length)
    encoder = tiny_text_encoder(tokenizer, hidden).requires_grad_(False)
    return encoder, tokenizer, IdentityPrompt.tokenise(tokenizer, CONFIG)


def oracle(encoder, prompt, face):
    """One person: transformers' own forward, with the face in the row of the word "id" of the embedding table."""
    encoder = copy.deepcopy(encoder)
    word = prompt.input_ids[prompt.mask].item()
    row = torch.zeros(encoder.config.hidden_size)
    row[: len(face)] = face / face.norm()
    encoder.get_input_embeddings().weight.data[word] = row
    return encoder(prompt.input_ids).last_hidden_state


@pytest.mark.parametrize(("hidden", "length"), [(512, 16), (516, 77), (768, 77), (1024, 9)])
@pytest.mark.parametrize("people", [1, 2, 5])
def test_projection_equals_the_oracle_at_any_size(hidden, length, people):
    encoder, _, prompt = build(hidden, length)
    faces = 20 * torch.randn(people, 512)
    ours = identity_prompt_embeds(encoder, prompt, faces)
    assert ours.shape == (people, length, hidden)
    expected = torch.cat([oracle(encoder, prompt, face) for face in faces])
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)


def test_null_prompt_is_the_plain_encoder_on_the_empty_prompt():
    encoder, tokenizer, prompt = build()
    expected = encoder(tokenizer([""], padding="max_length", return_tensors="pt").input_ids).last_hidden_state
    torch.testing.assert_close(null_prompt_embeds(encoder, prompt, torch.device("cpu")), expected)


def test_raw_and_unit_embeddings_give_the_same_prompt():
    encoder, _, prompt = build()
    raw = 20 * torch.randn(2, 512)
    unit = torch.nn.functional.normalize(raw, dim=-1)
    one, other = (identity_prompt_embeds(encoder, prompt, faces) for faces in (raw, unit))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_the_face_leaves_no_part_of_the_word():
    encoder, _, prompt = build()
    face = torch.randn(1, 512)
    before = identity_prompt_embeds(encoder, prompt, face)
    encoder.get_input_embeddings().weight.data[prompt.input_ids[prompt.mask].item()] += 1
    torch.testing.assert_close(identity_prompt_embeds(encoder, prompt, face), before, atol=0, rtol=0)


def test_gradients_reach_the_face_and_the_encoder():
    encoder, _, prompt = build()
    encoder.requires_grad_(True)
    face = torch.randn(2, 512, requires_grad=True)
    identity_prompt_embeds(encoder, prompt, face).square().sum().backward()
    assert face.grad is not None and (face.grad.abs().sum(-1) > 0).all()
    assert encoder.final_layer_norm.weight.grad is not None
    table = encoder.get_input_embeddings().weight.grad
    assert table is not None and table[prompt.input_ids[prompt.mask]].abs().sum() == 0, "the word's own row is unused"


def test_nothing_is_left_on_the_encoder():
    encoder, _, prompt = build()
    tree, state = repr(encoder), copy.deepcopy(encoder.state_dict())
    identity_prompt_embeds(encoder, prompt, torch.randn(2, 512))
    assert repr(encoder) == tree
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in encoder.modules())


def test_threads_on_one_encoder_do_not_mix_people():
    encoder, _, prompt = build()
    faces = torch.randn(8, 1, 512)
    alone = [identity_prompt_embeds(encoder, prompt, face) for face in faces]
    together = [None] * len(faces)

    def work(index):
        for _ in range(5):
            together[index] = identity_prompt_embeds(encoder, prompt, faces[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(faces))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_several_tokens_are_filled_in_order():
    rows = torch.zeros(1, 5, 3)
    mask = torch.tensor([[False, True, False, True, True]])
    vectors = torch.arange(18.0).reshape(2, 3, 3)
    out = substitute(rows, mask, vectors)
    assert torch.equal(out[:, [1, 3, 4]], vectors) and out[:, [0, 2]].abs().sum() == 0


def test_sequential_offload_brings_the_encoder_to_its_device():
    encoder, _, prompt = build()
    face = torch.randn(2, 512)
    before = identity_prompt_embeds(encoder, prompt, face)
    cpu_offload(encoder, execution_device=torch.device("cpu"))
    assert next(encoder.parameters()).is_meta
    assert torch.equal(identity_prompt_embeds(encoder, prompt, face), before)
    assert next(encoder.parameters()).is_meta


def test_model_offload_hook_fires():
    encoder, _, prompt = build()
    fired = []

    class Hook(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            fired.append(module)
            return args, kwargs

    add_hook_to_module(encoder, Hook())
    identity_prompt_embeds(encoder, prompt, torch.randn(1, 512))
    assert fired and all(module is encoder for module in fired)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offload_brings_the_encoder_to_its_device(kind, tmp_path):
    """Groups that wait on disk: their tensors hold nothing of use until a hook loads them."""
    encoder, _, prompt = build()
    face, cpu = torch.randn(2, 512), torch.device("cpu")
    before = identity_prompt_embeds(encoder, prompt, face)
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    options = {"offload_type": kind, "offload_to_disk_path": str(tmp_path), "low_cpu_mem_usage": True}
    apply_group_offloading(encoder, onload_device=cpu, offload_device=cpu, **options, **blocks)
    for parameter in encoder.parameters():  # a device of its own would lose them; make sure that these are lost
        parameter.data.fill_(torch.nan)
    for _ in range(2):
        torch.testing.assert_close(identity_prompt_embeds(encoder, prompt, face), before)


def test_a_face_wider_than_the_encoder_is_refused():
    encoder, _, prompt = build(hidden=64)
    with pytest.raises(IdgenError, match=r"512.*64"):
        identity_prompt_embeds(encoder, prompt, torch.randn(1, 512))


@pytest.mark.parametrize(
    ("words", "length", "message"),
    [(("photo", "of", "a", "person"), 16, "as one token"), (("photo", "of", "a", "id", "person"), 4, "exactly once")],
)
def test_a_tokenizer_that_can_not_hold_the_prompt_is_refused(words, length, message):
    with pytest.raises(IdgenError, match=message):
        IdentityPrompt.tokenise(tiny_tokenizer(words, length), CONFIG)


def test_a_prompt_must_hold_the_word_once():
    with pytest.raises(IdgenError, match="exactly once"):
        Arc2FaceConfig(prompt="photo of a person")


def test_encode_embeddings_equals_the_encoder():
    encoder, tokenizer, _ = build()
    ids = tokenizer(["photo of a man", "a"], padding="max_length", return_tensors="pt").input_ids
    expected = encoder(ids).last_hidden_state
    torch.testing.assert_close(encode_embeddings(encoder, embed_tokens(encoder, ids)), expected, atol=0, rtol=0)
