"""PVA against the original, through the published container FPIP.bin and its config.json."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from idgen.adapters.pva.prompt import PersonPrompts
from idgen.adapters.pva.training import HoleBatch, PVADenoiser, make_holes, train_on_bins
from idgen.adapters.pva.transform import TransformNetwork, face_crop
from idgen.checkpoint import load_strict, load_weights
from idgen.models.published import part
from idgen.pipelines import PVAInpaintPipeline
from tests.conformance.golden import Golden, goldens
from tests.tiny import word_tokenizer


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


@pytest.mark.parametrize("folder", goldens("pva_inpaint_pipeline"), ids=lambda folder: folder.name)
@pytest.mark.parametrize("container", ["visual", "all of attn2"])
def test_sampling_and_personalisation_equal_the_original(folder, container, tmp_path, monkeypatch):
    golden = Golden(folder)
    write_published(golden, tmp_path / "pva", tmp_path / "base", container)
    pipe = PVAInpaintPipeline.from_pretrained(tmp_path / "pva", recogniser=stand_in(golden))
    pipe.set_progress_bar_config(disable=True)
    results = sampled(pipe, golden, monkeypatch) | personalised(pipe, golden, monkeypatch)
    golden.check(results)


def sampled(pipe: PVAInpaintPipeline, golden: Golden, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Every output of the pipeline's own."""
    inputs, config = golden.inputs(), golden.config
    people = [pipe.encode_identity(references) for references in inputs["refs"]]
    prompts, negatives = (texts(inputs[name], config["modifier_token_id"]) for name in ("input_ids", "negative_ids"))
    monkeypatch.setattr(
        DiagonalGaussianDistribution, "sample", lambda own, _=None: own.mean + own.std * inputs["vae_noise"]
    )
    with torch.no_grad():
        visual = pipe.pva.embed(people)[0]
    text = pipe.encode_person_prompt(prompts)
    results = {
        "visual": visual,
        "context": torch.cat([text, visual], 1),
        "neg_text": pipe.encode_person_prompt(negatives),
    }

    def run(**options: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        steps, last = [], {}

        def record(_pipe: Any, _index: int, _time: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            steps.append(tensors["latents"])
            last.update(tensors)
            return {}

        images = pipe(
            people,
            prompts,
            (inputs["image"] + 1) / 2,
            inputs["mask"],
            negative_prompt=negatives,
            latents=inputs["latent"],
            num_inference_steps=config["steps"],
            output_type="np",
            callback_on_step_end=record,
            callback_on_step_end_tensor_inputs=["latents", "mask", "masked_image_latents"],
            **options,
        ).images
        return torch.stack(steps), torch.from_numpy(images), last

    guided = {"guidance_scale": config["guidance_scale"]}
    for name, options in (("cfg1", {}), ("cfg", guided), ("cfg_idneg", guided | {"text_control": True})):
        results[f"{name}.latents_steps"], results[f"{name}.image"], last = run(**options)
        if name == "cfg1":
            results |= {"mask_small": last["mask"], "masked_latents": last["masked_image_latents"]}
    results["timesteps"] = pipe.scheduler.timesteps
    step, noises = pipe.scheduler.step, iter(inputs["variance_noise"])
    monkeypatch.setattr(
        pipe.scheduler, "step", lambda *a, **k: step(*a, **k, variance_noise=next(noises)), raising=False
    )
    pipe.prepare_extra_step_kwargs = lambda generator, eta: {"eta": eta}
    results["cfg1_eta1.latents_steps"], results["cfg1_eta1.image"], _ = run(eta=1.0)
    return results


def personalised(pipe: PVAInpaintPipeline, golden: Golden, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Every output of one training step for a person."""
    inputs, config, notes = golden.inputs(), golden.config, golden.meta["notes"]
    adapter = pipe.pva.requires_grad_(False)
    layers = {layer.name: str(layer.index) for layer in adapter.layers if layer.cross}

    def weight(key: str) -> torch.nn.Parameter:
        name, letter = key.removeprefix("unet.").removesuffix(".weight").rsplit(".to_visual_", 1)
        index = layers[name]
        return adapter.query[index].weight if letter == "q" else getattr(adapter.kv[index], f"to_{letter}").weight

    visual = {key: weight(key).requires_grad_(True) for key in notes["ft_trainable_visual_keys"]}
    trained = visual | {"modifier_vec": adapter.modifier.requires_grad_(True)}
    before = {key: value.detach().clone() for key, value in trained.items()}
    rates = ((list(visual.values()), config["lr"]), ([adapter.modifier], config["lr_modifier"]))
    groups = [{"params": values, "lr": rate} for values, rate in rates]
    optimizer = torch.optim.AdamW(groups, weight_decay=config["weight_decay"])
    gradients: list[dict[str, torch.Tensor]] = []
    optimizer.register_step_pre_hook(
        lambda *_: gradients.append({key: value.grad.clone() for key, value in trained.items()})
    )
    denoiser = PVADenoiser(pipe.unet, adapter, pipe.text_encoder).eval()
    predictions: list[torch.Tensor] = []
    denoiser.register_forward_hook(lambda _module, _inputs, output: predictions.append(output.detach()))

    noise = inputs["ft.vae_noise"]
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda own, _=None: own.mean + own.std * noise)
    latents, masked, mask = make_holes(pipe.vae, inputs["image"], inputs["mask"])
    references = torch.stack([pipe.encode_identity(rows).vectors for rows in inputs["refs"]])
    prompts = PersonPrompts.tokenise(pipe.tokenizer, texts(inputs["input_ids"], config["modifier_token_id"]))
    batch = HoleBatch(latents, masked, mask, references, prompts)
    times = inputs["ft.t"][:, None].expand(-1, len(latents))
    every = config["gradient_accumulation_steps"]
    losses = train_on_bins(denoiser, optimizer, pipe.scheduler, batch, times, inputs["ft.noise"], every)
    assert len(gradients) == notes["ft_optimizer_steps"]

    results = {
        "ft.eps": torch.stack(predictions),
        "ft.loss": losses,
        "ft.grad.modifier_vec": gradients[0]["modifier_vec"],
        "ft.delta.modifier_vec": adapter.modifier - before["modifier_vec"],
        "ft.grad_norms": torch.stack([gradients[0][key].norm() for key in visual]),
        "ft.delta_mean_abs": torch.stack([(value - before[key]).abs().mean() for key, value in visual.items()]),
    }
    for end in ("first", "last"):
        for letter in "qkv":
            results[f"ft.grad.{end}.to_visual_{letter}"] = gradients[0][
                f"{notes[f'ft_{end}']}to_visual_{letter}.weight"
            ]
    return results


def texts(ids: torch.Tensor, placeholder: int) -> list[str]:
    """Prompts that `write_published`'s tokenizer turns into these ids."""
    rows = [[int(one) for one in row] for row in ids]
    words = [row[1 : row.index(row[-1]) - 1] for row in rows]  # between the ends, before the padding
    return [" ".join("<new1>" if one == placeholder else word(one) for one in row) for row in words]


def word(index: int) -> str:
    """A word for a token: CLIP's tokenizer cuts at every digit."""
    return "w" + "".join(chr(ord("a") + int(digit)) for digit in str(index))


def stand_in(golden: Golden) -> nn.Module:
    """What the golden has in the place of an IResNet; its weights come out of FPIP.bin."""
    shapes = {key: list(value.shape) for key, value in golden.weights("face_net_train.facenet.").items()}
    out, into, side, _ = shapes["c.weight"]
    dim, features = shapes["l.weight"]
    network = nn.Sequential()
    network.add_module("c", nn.Conv2d(into, out, side, stride=side))
    network.add_module("flat", nn.Flatten())
    network.add_module("l", nn.Linear(features, dim))
    return network


def write_published(golden: Golden, folder: Path, base: Path, container: str) -> None:
    """The authors' training folder, and the base that its config.json names."""
    config, weights = golden.config, golden.weights()
    ids = golden.inputs()["input_ids"][0]
    text_config = CLIPTextConfig(**config["text"])
    bos, eos, pad = (config["text"][f"{special}_token_id"] for special in ("bos", "eos", "pad"))
    words = {word(index): index for index in range(text_config.vocab_size) if index not in (bos, eos, pad)}
    tokenizer = word_tokenizer(words, bos=bos, eos=eos, pad=pad, length=len(ids))
    parts: dict[str, Any] = {
        "vae": AutoencoderKL(**config["vae"]),
        "unet": UNet2DConditionModel(**config["unet"]),
        "text_encoder": CLIPTextModel(text_config),
    }
    state = {key.removeprefix("clip_text_enc.text_model."): value for key, value in weights.items()}
    state = {key: value for key, value in state.items() if not key.endswith("modifier_vec")}
    load_strict(parts["text_encoder"], {key: state[key] for key in parts["text_encoder"].state_dict()}, "text")
    visual = part(weights, "unet.")
    load_strict(parts["unet"], {key: value for key, value in visual.items() if "to_visual" not in key}, "UNet")
    if container != "visual":  # the base's own attention is then another, and the file's takes its place
        for name, parameter in parts["unet"].named_parameters():
            if ".attn2." in name:
                nn.init.normal_(parameter)
    scheduler = DDIMScheduler.from_config(config["scheduler"])
    optional = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionInpaintPipeline(**parts, tokenizer=tokenizer, scheduler=scheduler, **optional).save_pretrained(base)

    save_file(part(weights, "vae."), base / "vae" / "diffusion_pytorch_model.safetensors")  # of keys as they were then

    wanted = "to_visual" if container == "visual" else ".attn2."
    folder.mkdir()
    torch.save(
        {
            "modifier_vec": weights["clip_text_enc.text_model.embeddings.token_embedding.modifier_vec"],
            "transform_network": part(weights, "trans_net."),
            "unet": {key: value for key, value in visual.items() if wanted in key},
            "face_net": part(weights, "face_net_train."),
        },
        folder / "FPIP.bin",
    )
    settings = {"pretrained_model_name_or_path": str(base), "modifier_token": {"name": "<new1>"}}
    (folder / "config.json").write_text(json.dumps(settings))
