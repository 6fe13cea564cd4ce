"""ReferenceRestorePipeline: photos, references and caches in every form; schedulers, callbacks, files and offloading."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image

from idgen.adapters.cachekv import CacheKV
from idgen.checkpoint import save_weights
from idgen.errors import IdgenError
from idgen.pipelines import ReferenceRestorePipeline
from tests.tiny_restore import SIZE, tiny_restorer


@pytest.fixture
def pipe():
    return tiny_restorer()


def photos(count, seed=1):
    random = np.random.default_rng(seed)
    return [Image.fromarray(random.integers(0, 256, (SIZE, SIZE, 3), np.uint8)) for _ in range(count)]


def restored(pipe, image, references=None, **options):
    generator = torch.Generator().manual_seed(0)
    settings = {"num_inference_steps": 3, "generator": generator, "output_type": "pt"} | options
    return pipe(image, references, **settings).images


def close(first, second):
    return torch.allclose(first, second, atol=2e-5)


def test_references_a_cache_and_its_file_restore_alike(pipe, tmp_path):
    bad, anna = photos(2), photos(3, seed=2)
    wanted = restored(pipe, bad, anna)
    assert wanted.shape == (2, 3, SIZE, SIZE) and wanted.min() >= 0 and wanted.max() <= 1
    cache = pipe.cache(anna)
    cache.save(tmp_path / "anna.safetensors")
    for given in (cache, tmp_path / "anna.safetensors"):
        assert torch.equal(restored(pipe, bad, cache=given), wanted)
    assert not close(restored(pipe, bad), wanted) and not close(restored(pipe, bad, photos(3, seed=9)), wanted)


def test_a_batch_of_people_is_each_alone(pipe):
    bad = photos(3)
    people = [photos(1, seed=2), [], photos(3, seed=3)]
    noise = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(5))
    together = restored(pipe, bad, people, latents=noise)
    for index, person in enumerate(people):
        alone = restored(pipe, bad[index], person, latents=noise[index : index + 1])
        assert close(alone, together[index : index + 1])
    caches = [pipe.cache(person) if person else None for person in people]
    assert close(restored(pipe, bad, cache=caches, latents=noise), together)
    equal = [photos(2, seed=seed) for seed in (4, 5, 6)]
    assert close(restored(pipe, bad, equal, latents=noise)[1:2], restored(pipe, bad[1], equal[1], latents=noise[1:2]))


def test_a_photo_is_a_file_a_picture_an_array_or_a_tensor(pipe, tmp_path):
    (bad,) = photos(1)
    bad.save(tmp_path / "bad.png")
    as_tensor = torch.from_numpy(np.array(bad)).permute(2, 0, 1) / 255
    wanted = restored(pipe, bad)
    for given in (tmp_path / "bad.png", [str(tmp_path / "bad.png")], np.array(bad), as_tensor, as_tensor[None]):
        assert close(restored(pipe, given), wanted)
    grey = bad.convert("L")
    assert close(restored(pipe, grey), restored(pipe, grey.convert("RGB")))
    large = bad.resize((200, 200))
    assert restored(pipe, large).shape == (1, 3, SIZE, SIZE)


def test_output_types(pipe):
    (bad,) = photos(1)
    assert restored(pipe, bad, output_type="pil")[0].size == (SIZE, SIZE)
    assert restored(pipe, bad, output_type="np").shape == (1, SIZE, SIZE, 3)
    assert restored(pipe, bad, output_type="latent").shape == (1, 8, 4, 4)
    assert isinstance(pipe(bad, num_inference_steps=1, return_dict=False), tuple)


def test_guidance_levels_and_encoding_act(pipe):
    bad, anna = photos(1), photos(2, seed=2)
    wanted = restored(pipe, bad, anna)
    for changes in ({"guidance_scale": 1.0}, {"levels": [2]}, {"ref_encoding": "panorama"}):
        assert not close(restored(pipe, bad, anna, **changes), wanted)
    assert close(restored(pipe, bad, cache=pipe.cache(anna), levels=[2]), restored(pipe, bad, anna, levels=[2]))
    assert torch.equal(restored(pipe, bad, guidance_scale=9.0), restored(pipe, bad)), "nobody is there to follow"
    assert restored(pipe, bad, anna, size=64).shape == (1, 3, 64, 64)


def test_a_model_without_references():
    pipe = tiny_restorer(references=0)
    (bad,) = photos(1)
    calls = []
    pipe.unet.conv_in.register_forward_hook(lambda module, given, made: calls.append(len(given[0])))
    restored(pipe, bad, num_inference_steps=2)
    assert calls == [1, 1], "no pass over references, no guidance"
    with pytest.raises(IdgenError, match="without references"):
        restored(pipe, bad, photos(1))


@pytest.mark.parametrize(
    "kind", [DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, LCMScheduler, UniPCMultistepScheduler]
)
def test_any_scheduler_of_diffusers(pipe, kind):
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    images = restored(pipe, photos(1), photos(1, seed=2), num_inference_steps=4)
    assert images.isfinite().all() and images.std() > 0.01


@pytest.mark.parametrize("kind", [DDPMScheduler, EulerAncestralDiscreteScheduler, LCMScheduler])
def test_noise_that_is_added_at_each_step_is_the_seeds_and_each_photos_own(pipe, kind):
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    bad = photos(2)

    def made(photos, *seeds):
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        return restored(pipe, photos, generator=generator, output_type="latent")

    together = made(bad, 0, 1)
    assert torch.equal(made(bad, 0, 1), together)
    torch.testing.assert_close(made(bad[1], 1), together[1:], atol=1e-3, rtol=0)  # untrained, it enlarges rounding


def test_an_autoencoder_of_another_precision_than_the_unets(pipe):
    pipe.unet.to(torch.bfloat16)
    images = restored(pipe, photos(1), photos(1, seed=2))
    assert images.dtype == torch.float32 and images.isfinite().all()


def test_callbacks_see_change_and_stop(pipe):
    (bad,) = photos(1)
    seen = []

    def stop_after_two(pipe, step, timestep, values):
        seen.append((step, int(timestep)))
        pipe._interrupt = step == 1
        return {"latents": torch.zeros_like(values["latents"])}

    latents = restored(pipe, bad, callback_on_step_end=stop_after_two, output_type="latent")
    assert [step for step, _ in seen] == [0, 1] and seen[0][1] > seen[1][1]
    assert not latents.any()
    assert len(restored(pipe, bad)) == 1, "the next call runs to its end"


def test_saved_and_loaded_it_restores_the_same_bits(pipe, tmp_path):
    bad, anna = photos(1), photos(2, seed=2)
    wanted = restored(pipe, bad, anna)
    pipe.save_pretrained(tmp_path)
    loaded = ReferenceRestorePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert (loaded.config.size, loaded.config.ref_encoding, loaded.config.references) == (SIZE, "independent", 2)
    assert torch.equal(restored(loaded, bad, anna), wanted)
    half = ReferenceRestorePipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert half.unet.dtype == half.vq.dtype == torch.bfloat16
    assert restored(half, bad, anna).isfinite().all()


def test_mini_takes_the_familys_autoencoder(pipe, tmp_path, monkeypatch):
    monkeypatch.setenv("IDGEN_MINI", str(tmp_path))
    with pytest.raises(IdgenError, match="restore"):
        ReferenceRestorePipeline.from_pretrained("mini")
    pipe.save_pretrained(tmp_path / "restore")
    (tmp_path / "restore" / "vq").rename(tmp_path / "vae")
    loaded = ReferenceRestorePipeline.from_pretrained("mini")
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(restored(loaded, photos(1)), restored(pipe, photos(1)))


def test_offloaded_weights(pipe):
    bad, anna = photos(1), photos(2, seed=2)
    wanted = restored(pipe, bad, anna)
    cache = pipe.cache(anna)
    for part in (pipe.unet, pipe.vq):
        cpu_offload(part, "cpu")
    assert close(restored(pipe, bad, anna), wanted)
    assert close(restored(pipe, bad, cache=cache), wanted)


def test_threads_on_one_pipeline_never_mix_people(pipe):
    bad = photos(1)
    caches = [pipe.cache(photos(2, seed=seed)) for seed in (2, 3)]
    wanted = [restored(pipe, bad, cache=cache) for cache in caches]
    assert not close(*wanted)
    made = [None, None]

    def work(index):
        made[index] = [restored(pipe, bad, cache=caches[index]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for images, expected in zip(made, wanted, strict=True):
        assert all(close(one, expected) for one in images)


def test_pipelines_share_a_unet(pipe):
    other = ReferenceRestorePipeline(pipe.unet, pipe.vq, pipe.scheduler, **{"size": SIZE, "references": 2})
    assert other.kv is pipe.kv and isinstance(pipe.kv, CacheKV)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": []}, "no photo"),
        ({"image": Image.new("RGB", (64, 32))}, "aligned face is square"),
        ({"image": torch.zeros(1, 3, 8, 8)}, "as a tensor"),
        ({"image": torch.full((3, SIZE, SIZE), 2.0)}, r"\[0, 1\]"),
        ({"image": "missing.png"}, "no such file"),
        ({"references": [[], [], []]}, "3 people for 1 photos"),
        ({"references": photos(1), "cache": "anna.safetensors"}, "not both"),
        ({"references": photos(1), "ref_encoding": "mosaic"}, "panorama or independent"),
        ({"references": photos(1), "levels": [8]}, "levels"),
        ({"cache": 3}, "not int"),
        ({"cache": "missing.safetensors"}, "no such"),
        ({"guidance_scale": float("nan")}, "finite"),
        ({"size": 40}, "multiple of 16"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"latents": torch.zeros(1, 8, 5, 5)}, "latents have the shape"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "a callback sees latents"),
    ],
)
def test_a_mistake_is_one_line(pipe, change, words):
    with pytest.raises(IdgenError, match=words) as caught:
        pipe(**{"image": photos(1)} | change)
    assert "\n" not in str(caught.value)


def test_a_cache_of_another_model_is_refused(pipe, tmp_path):
    cache = tiny_restorer(seed=3).cache(photos(1))
    cache.save(tmp_path / "anna.safetensors")
    for given in (cache, tmp_path / "anna.safetensors"):
        with pytest.raises(IdgenError, match="other weights"):
            pipe(photos(1), cache=given)


def test_a_folder_or_file_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(IdgenError, match="no such file or folder"):
        ReferenceRestorePipeline.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(IdgenError, match="holds no restoration model"):
        ReferenceRestorePipeline.from_pretrained(tmp_path)
    save_weights(tmp_path / "refldm.safetensors", {"weight": torch.zeros(1)})
    for name in (tmp_path, tmp_path / "refldm.safetensors"):
        with pytest.raises(IdgenError, match="refldm"):
            ReferenceRestorePipeline.from_pretrained(name)
