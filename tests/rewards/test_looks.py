"""Rewards of looks: the mini head and its distorted pairs, and the published layouts with small random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from idgen.checkpoint import save_weights
from idgen.data.distortions import KINDS, distort
from idgen.errors import IdgenError
from idgen.models.preference import PreferenceNet, load_preference
from idgen.rewards.image_reward import DEVIATION, MEAN, ImageReward, ImageRewardNet
from idgen.rewards.looks import ClipAesthetic, PickScore, PreferenceReward, clip_pixels, score_layers
from idgen.rewards.scores import Scored
from idgen.rewards.terms import RewardSum, RewardTerm
from idgen.rewards.views import Asked, View
from idgen.train.preference import bradley_terry
from tests.tiny import tiny_tokenizer

POINTS = torch.tensor([[50.0, 56], [78, 56], [64, 80], [52, 96], [76, 96]])


def view(count: int = 2, size: int = 64, whole: bool = True) -> View:
    torch.manual_seed(1)
    pictures = (torch.rand(count, 3, size, size) * 2 - 1).requires_grad_()
    return View(pictures, torch.zeros(count, 5, 2), torch.zeros(count, dtype=torch.bool), whole)


@pytest.mark.parametrize("place", range(len(KINDS)), ids=list(KINDS))
def test_distortions_grow_with_severity_and_none_is_none(place):
    images = F.interpolate(torch.rand(4, 3, 16, 16) * 1.6 - 0.8, (128, 128), mode="bilinear")
    kinds, landmarks, changes = torch.full((4,), place), POINTS.expand(4, 5, 2), []
    for severity in (0.0, 0.3, 1.0):
        torch.manual_seed(0)
        worse = distort(images, landmarks, torch.full((4,), severity), kinds)
        assert worse.abs().max() <= 1
        changes.append(float((worse - images).abs().mean()))
    assert 0 == changes[0] < changes[1] < changes[2]


def test_the_face_moves_and_its_surroundings_stay():
    images = torch.rand(2, 3, 128, 128)
    worse = distort(images, POINTS.expand(2, 5, 2), torch.ones(2), torch.zeros(2, dtype=torch.long))
    assert torch.allclose(worse[..., :12], images[..., :12], atol=0.05)
    assert (worse[..., 40:110, 40:90] - images[..., 40:110, 40:90]).abs().mean() > 0.1


def test_bradley_terry_is_log_two_at_a_tie_and_its_gradient_that_of_finite_differences():
    tie = torch.zeros(3)
    assert bradley_terry(tie, tie).item() == pytest.approx(0.6931, abs=1e-4)
    pair = [torch.randn(3, requires_grad=True) for _ in range(2)]
    bradley_terry(*pair).backward()
    chance = torch.sigmoid(pair[0] - pair[1]).detach()
    assert torch.allclose(pair[0].grad, (chance - 1) / 3) and torch.allclose(pair[1].grad, (1 - chance) / 3)


def test_the_head_is_calibrated_saved_and_reads_pictures_of_any_size(tmp_path: Path):
    torch.manual_seed(0)
    network = PreferenceNet((8, 16))
    pictures = torch.rand(6, 3, 128, 128)
    raw = network(pictures)
    network.calibrate(raw)
    again = network(pictures)
    assert again.mean().item() == pytest.approx(0, abs=1e-4) and again.std().item() == pytest.approx(1, abs=1e-3)
    (tmp_path / "config.json").write_text(json.dumps(network.config))
    save_weights(tmp_path / "model.safetensors", network.state_dict())
    assert torch.equal(load_preference(tmp_path)(pictures), again)
    seen = view()
    scored = PreferenceReward(tmp_path)(seen, Asked())
    scored.mean().backward()
    assert scored.counted.all() and seen.pictures.grad.abs().sum() > 0


def test_the_aesthetic_predictor_reads_clip_embeddings_of_length_one(tmp_path: Path):
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    vision.projection_dim = 24
    clip = CLIPVisionModelWithProjection(vision).eval()
    clip.save_pretrained(tmp_path / "clip")
    head = score_layers(24)
    torch.save({f"layers.{name}": value for name, value in head.state_dict().items()}, tmp_path / "head.pth")
    seen = view()
    scored = ClipAesthetic(tmp_path / "head.pth", str(tmp_path / "clip"))(seen, Asked())
    embeddings = F.normalize(clip(pixel_values=clip_pixels(seen.pictures, 32)).image_embeds, dim=-1)
    assert [name for name in head.state_dict() if "weight" in name] == [f"{n}.weight" for n in (0, 2, 4, 6, 7)]
    assert torch.allclose(scored.values, head.eval()(embeddings)[:, 0], atol=1e-5)
    scored.mean().backward()
    assert seen.pictures.grad.abs().sum() > 0


def test_pick_score_is_the_scaled_cosine_of_prompt_and_picture(tmp_path: Path):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = tiny_tokenizer(length=77)
    text = small | {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 16}, projection_dim=8)
    clip = CLIPModel(config).eval()
    clip.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    seen, prompts = view(), ["a photo of a man", "smiling woman"]
    scored = PickScore(str(tmp_path))(seen, Asked(prompts=prompts))
    tokens = tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt")
    logits = clip(**tokens, pixel_values=clip_pixels(seen.pictures, 32)).logits_per_image
    assert torch.allclose(scored.values, logits.diagonal(), atol=1e-4)
    with pytest.raises(IdgenError, match="2 pictures came with 0 prompts"):
        PickScore(str(tmp_path))(seen, Asked())


def published_image_reward(network: ImageRewardNet) -> dict[str, torch.Tensor]:
    """A network's weights under the published names, and what else the published file holds."""
    names = {
        "vision.embeddings.class_embedding": "blip.visual_encoder.cls_token",
        "vision.embeddings.position_embedding": "blip.visual_encoder.pos_embed",
        "vision.embeddings.patch_embedding.": "blip.visual_encoder.patch_embed.proj.",
        "vision.post_layernorm.": "blip.visual_encoder.norm.",
        "vision.encoder.layers.": "blip.visual_encoder.blocks.",
        ".layer_norm1.": ".norm1.",
        ".layer_norm2.": ".norm2.",
        ".self_attn.projection.": ".attn.proj.",
        ".self_attn.": ".attn.",
    }
    state = {}
    for name, value in network.state_dict().items():
        if name.startswith("vision."):
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
        name = name.replace("text.", "blip.text_encoder.", 1) if name.startswith("text.") else name
        state[name.replace("head.", "mlp.layers.", 1) if name.startswith("head.") else name] = value
    extra = {"blip.vision_proj.weight": torch.zeros(2, 2), "blip.text_encoder.embeddings.position_ids": torch.arange(4)}
    return state | extra


def vit_by_hand(state: dict[str, torch.Tensor], pixels: torch.Tensor, layers: int, heads: int) -> torch.Tensor:
    """timm's vision transformer, which the published weights were saved from."""
    prefix = "blip.visual_encoder."
    part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    x = F.conv2d(pixels, part["patch_embed.proj.weight"], part["patch_embed.proj.bias"], 16).flatten(2).transpose(1, 2)
    x = torch.cat([part["cls_token"].expand(len(x), -1, -1), x], 1) + part["pos_embed"]
    width = x.shape[-1]

    def norm(name, x):
        return F.layer_norm(x, (width,), part[f"{name}.weight"], part[f"{name}.bias"], 1e-6)

    def linear(name, x):
        return F.linear(x, part[f"{name}.weight"], part[f"{name}.bias"])

    for n in range(layers):
        qkv = linear(f"blocks.{n}.attn.qkv", norm(f"blocks.{n}.norm1", x))
        q, k, v = qkv.unflatten(-1, (3, heads, width // heads)).permute(2, 0, 3, 1, 4)
        attended = ((q @ k.transpose(-1, -2)) * (width // heads) ** -0.5).softmax(-1) @ v
        x = x + linear(f"blocks.{n}.attn.proj", attended.transpose(1, 2).flatten(2))
        x = x + linear(f"blocks.{n}.mlp.fc2", F.gelu(linear(f"blocks.{n}.mlp.fc1", norm(f"blocks.{n}.norm2", x))))
    return norm("norm", x)


def test_image_reward_loads_the_published_names_and_sees_as_timms_transformer_does(tmp_path: Path):
    torch.manual_seed(0)
    sizes = {"image_size": 32, "layers": 2, "width": 16, "heads": 2, "text_layers": 1, "text_width": 16}
    network = ImageRewardNet(**sizes, text_heads=2, vocabulary=40).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    state = published_image_reward(network)
    torch.save(state, tmp_path / "ImageReward.pt")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "man", "woman"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    seen, asked = view(), Asked(prompts=["a photo of a man", "a woman"])
    fresh = ImageRewardNet(**sizes, text_heads=2, vocabulary=40)
    reward = ImageReward(tmp_path / "ImageReward.pt", str(tmp_path), network=fresh)
    assert torch.allclose(
        reward.network.vision(pixel_values=clip_pixels(seen.pictures, 32)).last_hidden_state,
        vit_by_hand(state, clip_pixels(seen.pictures, 32), 2, 2),
        atol=1e-4,
    )
    scored = reward(seen, asked)
    ids = torch.zeros(2, 35, dtype=torch.long)
    ids[0, :7], ids[1, :4] = torch.tensor([2, 5, 6, 7, 5, 8, 3]), torch.tensor([2, 5, 9, 3])
    wanted = network(clip_pixels(seen.pictures, 32), ids, (ids > 0).long())
    assert torch.allclose(scored.values, wanted, atol=1e-5)
    scored.mean().backward()
    assert seen.pictures.grad.abs().sum() > 0
    network.head[-1].weight.data.zero_()
    network.head[-1].bias.data.fill_(MEAN + DEVIATION)
    assert network(clip_pixels(seen.pictures, 32), ids, (ids > 0).long()).tolist() == pytest.approx([1, 1], abs=1e-4)
    with pytest.raises(IdgenError, match=r"'blip\.itm_head\.weight' is no part of ImageReward"):
        torch.save(state | {"blip.itm_head.weight": torch.zeros(1)}, tmp_path / "other.pt")
        ImageReward(tmp_path / "other.pt", str(tmp_path), network=fresh)


def test_clip_reads_the_middle_square_at_its_own_size():
    pictures = torch.full((1, 3, 40, 80), -1.0)
    pictures[..., 20:60] = 1.0
    pixels = clip_pixels(pictures, 32)
    white = (1 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor([0.26862954, 0.26130258, 0.27577711])
    assert pixels.shape == (1, 3, 32, 32)
    assert torch.allclose(pixels[0, :, :, 2:-2], white.view(3, 1, 1).expand(3, 32, 28), atol=0.05)


class Fixed:
    needs_whole = True

    def __init__(self, values, counted):
        self.values, self.counted = torch.tensor(values), torch.tensor(counted)

    def __call__(self, view, asked):
        return Scored(self.values, self.counted)


def test_the_sum_weighs_means_of_what_each_reward_could_tell(monkeypatch):
    made = {"a": Fixed([0.5, 0.9, 0.0], [True, True, False]), "b": Fixed([1.0, 2.0, 3.0], [True] * 3)}
    monkeypatch.setattr("idgen.rewards.terms.build_reward", lambda term, device: made[term.source])
    rewards = RewardSum(
        {
            "who": RewardTerm(kind="identity", source="a", weight=0.2, ceiling=0.7),
            "looks": RewardTerm(kind="preference", source="b", weight=0.1),
        }
    )
    scored = rewards(view(3), Asked())
    assert rewards.total(scored).item() == pytest.approx(0.2 * 0.6 + 0.1 * 2)
    assert rewards.each(scored).tolist() == [pytest.approx(0.2), pytest.approx(0.34), float("-inf")]
    with pytest.raises(IdgenError, match="must see whole pictures"):
        rewards(view(3, whole=False), Asked())
    with pytest.raises(IdgenError, match="no reward given"):
        RewardSum({})


def test_weights_that_are_not_there_are_told_in_one_line():
    for term in (
        RewardTerm(kind="pick_score", source="nowhere/at-all"),
        RewardTerm(kind="preference", source="nowhere"),
        RewardTerm(kind="image_reward", source="nowhere.pt"),
        RewardTerm(kind="identity", source="nowhere"),
    ):
        with pytest.raises(IdgenError) as caught:
            RewardSum({"it": term})
        assert "nowhere" in str(caught.value) and "\n" not in str(caught.value)
