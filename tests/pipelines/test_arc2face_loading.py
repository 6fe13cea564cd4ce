"""Loading and saving Arc2FacePipeline: mini, published layout, own folders, variants; and what is refused."""

import json
import shutil
import sys

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler
from safetensors.torch import load_file, save_file

from idgen.errors import IdgenError
from idgen.identity import Identity
from idgen.pipelines import Arc2FacePipeline
from tests.pipelines.conftest import tiny_kl
from tests.tiny import tiny_components

PARTS = ("unet", "text_encoder", "vae")


def load(source, **options):
    pipe = Arc2FacePipeline.from_pretrained(source, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(pipe, faces):
    return pipe(faces, num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0)).images


def same_weights(one, other):
    for part in PARTS:
        a, b = getattr(one, part).state_dict(), getattr(other, part).state_dict()
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), part


@pytest.fixture
def published(root, tmp_path):
    """The authors' repository (no tokenizer, autoencoder or scheduler), and apart from it a Stable Diffusion folder."""
    repository, base = tmp_path / "Arc2Face", tmp_path / "sd15"
    repository.mkdir()
    for part in ("arc2face", "encoder"):
        shutil.copytree(root / part, repository / part)
    shutil.copytree(root, base, ignore=shutil.ignore_patterns("arc2face", "encoder"))
    edit_json(repository / "encoder" / "config.json", remove="recogniser")
    state = load_file(repository / "encoder" / "model.safetensors")
    (repository / "encoder" / "model.safetensors").unlink()
    torch.save({f"text_model.{key}": value for key, value in state.items()}, repository / "encoder/pytorch_model.bin")
    return repository, base


def edit_json(path, remove=None, **values):
    content = json.loads(path.read_text()) | values
    content.pop(remove, None)
    path.write_text(json.dumps(content))


def edit_weights(path, change):
    state = load_file(path)
    change(state)
    save_file(state, path, {"format": "pt"})


def test_mini_uses_the_finetuned_parts_and_its_own_recogniser(mini, faces):
    pipe = load("mini")
    assert pipe.config.recogniser == "mini"
    assert isinstance(pipe.scheduler, DDIMScheduler)
    assert not any(part.training for part in (pipe.unet, pipe.text_encoder, pipe.vae))
    finetuned = load_file(mini / "arc2face" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, finetuned[key]) for key, value in pipe.unet.state_dict().items())
    assert torch.isfinite(images(pipe, faces)).all()
    same_weights(pipe, load(mini))


def test_published_layout_equals_the_same_weights_in_the_mini_layout(published, mini, faces):
    repository, base = published
    pipe = load(repository, base=base)
    assert pipe.config.recogniser == "arc2face"
    same_weights(pipe, load("mini"))
    assert torch.equal(images(pipe, faces), images(load("mini"), faces))


def test_published_layout_samples_as_the_authors_do(published):
    repository, base = published
    PNDMScheduler(skip_prk_steps=True, steps_offset=1).save_pretrained(base / "scheduler")
    edit_json(base / "model_index.json", scheduler=["diffusers", "PNDMScheduler"])
    scheduler = load(repository, base=base).scheduler
    assert isinstance(scheduler, DPMSolverMultistepScheduler) and scheduler.config.timestep_spacing == "linspace"
    chosen = EulerDiscreteScheduler()
    assert load(repository, base=base, scheduler=chosen).scheduler is chosen


def test_what_is_saved_loads_to_the_same_pipeline(mini, tmp_path, faces):
    pipe = load("mini")
    pipe.save_pretrained(tmp_path / "mine")
    again = load(tmp_path / "mine")
    same_weights(pipe, again)
    assert again.config.recogniser == "mini" and again.scheduler.config == pipe.scheduler.config
    assert torch.equal(images(pipe, faces), images(again, faces))
    index = json.loads((tmp_path / "mine" / "model_index.json").read_text())
    assert index["_class_name"] == "Arc2FacePipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]


@pytest.mark.slow
def test_a_fresh_process_loads_what_was_saved(mini, tmp_path):
    import subprocess

    load("mini").save_pretrained(tmp_path / "mine")
    code = f"from idgen.pipelines import Arc2FacePipeline as P; P.from_pretrained({str(tmp_path / 'mine')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_weights_in_shards_load(mini, tmp_path):
    pipe = load("mini")
    pipe.save_pretrained(tmp_path / "mine", max_shard_size="100KB")
    assert len(list((tmp_path / "mine" / "unet").glob("*.safetensors"))) > 1
    same_weights(pipe, load(tmp_path / "mine"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype_is_that_asked_for(mini, dtype):
    for option in ("dtype", "torch_dtype"):
        assert {getattr(load("mini", **{option: dtype}), part).dtype for part in PARTS} == {dtype}
    assert {getattr(load("mini"), part).dtype for part in PARTS} == {torch.float32}


def test_half_precision_weights_load_as_float32_unless_asked_otherwise(mini, tmp_path, faces):
    load("mini", dtype=torch.float16).save_pretrained(tmp_path / "half")
    assert load_file(tmp_path / "half/unet/diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype == torch.half
    pipe = load(tmp_path / "half")
    assert pipe.unet.dtype == torch.float32 and torch.isfinite(images(pipe, faces)).all()


def test_a_variant_is_saved_and_loaded(mini, tmp_path):
    pipe = load("mini", dtype=torch.float16)
    pipe.save_pretrained(tmp_path / "mine", variant="fp16")
    assert (tmp_path / "mine" / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    same_weights(pipe, load(tmp_path / "mine", variant="fp16", dtype=torch.float16))
    for wrong in (None, "bf16"):
        with pytest.raises(IdgenError, match="no weights"):
            load(tmp_path / "mine", variant=wrong)


def test_given_components_replace_those_of_the_folder(mini):
    unet = tiny_components(seed=5)["unet"]
    assert load("mini", unet=unet).unet is unet


def test_optional_components_stay_absent(mini, tmp_path):
    pipe = load("mini")
    assert pipe.safety_checker is pipe.feature_extractor is pipe.image_encoder is None
    pipe.save_pretrained(tmp_path / "mine")
    assert load(tmp_path / "mine").safety_checker is None


def test_the_old_names_in_stable_diffusions_autoencoder_are_understood(published, faces):
    repository, base = published
    vae = tiny_kl()
    vae.save_pretrained(base / "vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(state):
        for key in [key for key in state if ".attentions." in key]:
            new = next((key.replace(f".{now}.", f".{then}.") for now, then in old.items() if f".{now}." in key), key)
            state[new] = state.pop(key)
        assert "decoder.mid_block.attentions.0.proj_attn.bias" in state

    edit_weights(base / VAE, rename)
    edit_json(base / "model_index.json", vae=["diffusers", "AutoencoderKL"])
    loaded = load(repository, base=base).vae
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in vae.state_dict().items())


def test_a_family_of_weights_names_its_recogniser(root, tmp_path):
    family = shutil.copytree(root, tmp_path / "family")
    edit_json(family / "encoder" / "config.json", remove="recogniser")
    assert load(family).config.recogniser == "arc2face"
    (family / "recogniser").mkdir()
    (family / "recogniser" / "config.json").write_text('{"name": "mini"}')
    assert load(family).config.recogniser == "mini"


def test_recogniser_can_be_named(published, tmp_path):
    repository, base = published
    load(repository, base=base, recogniser="mine").save_pretrained(tmp_path / "mine")
    assert load(tmp_path / "mine").config.recogniser == "mine"


def test_identity_of_another_recogniser_is_refused(mini, faces):
    with pytest.raises(IdgenError, match=r"'buffalo_l'.*'mini'"):
        load("mini")(Identity(faces, "buffalo_l"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("foivospar/Arc2Face", "with a network run: hf download foivospar/Arc2Face"),
        ("no/such/folder", "no such folder"),
        ("minii", "no such folder"),
    ],
)
def test_a_source_that_is_not_here_is_named(source, message):
    with pytest.raises(IdgenError, match=message) as error:
        load(source)
    assert "\n" not in str(error.value)


def test_a_base_that_is_not_here_is_named(published):
    repository, _ = published
    with pytest.raises(IdgenError, match="hf download stable-diffusion-v1-5/stable-diffusion-v1-5"):
        load(repository)


def test_a_folder_of_something_else_is_refused(root, tmp_path):
    with pytest.raises(IdgenError, match="not an Arc2Face model"):
        load(root / "vae")
    (tmp_path / "file").touch()
    with pytest.raises(IdgenError, match="is a file"):
        load(tmp_path / "file")


def test_mini_that_is_not_there_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("IDGEN_MINI", str(tmp_path / "nothing"))
    with pytest.raises(IdgenError, match="arc2face"):
        load("mini")


UNET, ENCODER = "arc2face/diffusion_pytorch_model.safetensors", "encoder/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("file", [UNET, ENCODER, VAE])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(sorted(state)[0]), "1 missing"),
        (lambda state: state.update(surprise=torch.zeros(1)), "1 unexpected: surprise"),
        (lambda state: state.update({sorted(state)[0]: torch.zeros(7)}), "1 misshapen"),
        (lambda state: state[sorted(state)[0]].fill_(torch.nan), "NaN"),
    ],
    ids=["missing", "unexpected", "misshapen", "nan"],
)
def test_weights_that_do_not_fit_are_named(root, tmp_path, file, change, message):
    copy = shutil.copytree(root, tmp_path / "copy")
    edit_weights(copy / file, change)
    with pytest.raises(IdgenError, match=message):
        load(copy)


@pytest.mark.parametrize("file", [UNET, ENCODER, VAE])
@pytest.mark.parametrize("damage", ["truncated", "empty", "absent"])
def test_a_damaged_file_is_named(root, tmp_path, file, damage):
    copy = shutil.copytree(root, tmp_path / "copy")
    if damage == "absent":
        (copy / file).unlink()
    else:
        (copy / file).write_bytes((copy / file).read_bytes()[: 2000 * (damage == "truncated")])
    with pytest.raises(IdgenError, match=file.split("/")[0]):
        load(copy)


@pytest.mark.parametrize("file", ["arc2face/config.json", "encoder/config.json", "vae/config.json", "model_index.json"])
def test_a_damaged_config_is_named(root, tmp_path, file):
    copy = shutil.copytree(root, tmp_path / "copy")
    (copy / file).write_text("{")
    with pytest.raises(IdgenError, match="JSON"):
        load(copy)


def test_a_pickle_that_would_run_code_never_runs(published, tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    repository, base = published
    torch.save({"text_model.x": Evil()}, repository / "encoder" / "pytorch_model.bin")
    with pytest.raises(IdgenError, match="run code"):
        load(repository, base=base)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_without_the_word_is_refused(mini, faces):
    from tests.tiny import tiny_tokenizer

    pipe = load("mini", tokenizer=tiny_tokenizer(("photo", "of", "a", "person"), length=16))
    with pytest.raises(IdgenError, match="'id'"):
        pipe(faces)
