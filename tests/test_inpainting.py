"""Whole photos and few steps for one person: what is filled, what is kept, what is told."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from idgen.adapters.pva import PVAConfig, training
from idgen.adapters.pva import personalise as module
from idgen.adapters.pva.person import PersonWeights, compress, expand, fingerprint
from idgen.data.portraits import as_tensor
from idgen.errors import IdgenError
from idgen.faces import FaceEncoder
from idgen.faces.align_torch import norm_crop_torch
from idgen.inpainting import _cut_largest, _emptied, inpaint_photo, personalise, read_references
from idgen.models.iresnet import IResNet
from idgen.models.mini_detector import Detections, MiniDetector
from idgen.pipelines import PVAInpaintPipeline
from tests.tiny_family import face_in_the_middle
from tests.tiny_inpainting import tiny_inpainting_family

FEW = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return tiny_inpainting_family(tmp_path_factory.mktemp("family"))


@pytest.fixture
def mini(family, monkeypatch):
    monkeypatch.setenv("IDGEN_MINI", str(family))
    monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)
    return family


@pytest.fixture
def pipe(mini):
    made = PVAInpaintPipeline.from_pretrained("mini")
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def encoder(mini):
    return FaceEncoder.from_pretrained("mini", device="cpu")


def photo(seed=0, size=(90, 70)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8))


def test_a_region_of_the_face_is_filled_and_the_rest_kept_to_the_bit(pipe, encoder):
    anna = read_references(pipe, encoder, [photo(1), photo(2)])
    before = np.asarray(photo())
    for region, rows in (("eyes", slice(20, 45)), ("lowerface", slice(30, 68)), ("random", slice(0, 70))):
        done = inpaint_photo(pipe, encoder, photo(), anna, region=region, **FEW)
        after = np.asarray(done.image)
        assert np.array_equal(after[~done.hole], before[~done.hole])
        assert (after[done.hole] != before[done.hole]).mean() > 0.5
        where = np.argwhere(done.hole)[:, 0]
        assert where.min() >= rows.start and where.max() <= rows.stop and not done.notes


def test_a_masked_face_is_filled_where_the_mask_is(pipe, encoder):
    mask = np.zeros((70, 90), bool)
    mask[30:50, 35:60] = True
    done = inpaint_photo(pipe, encoder, photo(), None, mask=mask, **FEW)
    assert np.array_equal(done.hole, mask) and done.notes == ["no references: filled with nobody in particular"]
    damaged = np.array(photo())
    damaged[mask] = 0
    other = inpaint_photo(pipe, encoder, Image.fromarray(damaged), None, mask=mask, **FEW)
    assert np.array_equal(np.asarray(other.image), np.asarray(done.image)), "what is to be filled must not be seen"


def test_what_of_the_mask_the_portrait_does_not_hold_is_left(pipe, encoder, monkeypatch):
    monkeypatch.setattr(MiniDetector, "detect", a_small_face)
    mask = np.zeros((200, 300), bool)
    mask[60:90, 30:300] = True
    done = inpaint_photo(pipe, encoder, photo(size=(300, 200)), None, mask=mask, **FEW)
    assert 0 < done.hole.sum() < mask.sum() and "lie outside of the face's portrait" in done.notes[1]
    away = np.zeros((200, 300), bool)
    away[150:, 250:] = True
    with pytest.raises(IdgenError, match="no face of the photo is where the mask is"):
        inpaint_photo(pipe, encoder, photo(size=(300, 200)), None, mask=away, **FEW)


def test_a_hole_shows_its_surroundings_before_it_is_filled():
    mask = np.zeros((90, 120), bool)
    mask[20:70, 30:] = True
    grey = np.full((90, 120, 3), 200, np.uint8)
    damaged = grey.copy()
    damaged[mask] = 0
    assert np.array_equal(np.asarray(_emptied(Image.fromarray(damaged), mask)), grey)
    before = np.asarray(photo(size=(120, 90)))
    after = np.asarray(_emptied(Image.fromarray(before), mask))
    assert np.array_equal(after[~mask], before[~mask]) and abs(after[mask].mean() - before[~mask].mean()) < 20


def test_a_turned_face_is_filled_in_its_place(pipe, encoder, monkeypatch):
    """The same photo upside down is filled at the same place of the face."""

    def upside_down(self, images, threshold=0.5):
        found = face_in_the_middle(self, images)
        return [Detections(one.boxes, 99 - one.landmarks, one.scores) for one in found]

    upright = inpaint_photo(pipe, encoder, photo(size=(100, 100)), None, region="eyes", **FEW)
    monkeypatch.setattr(MiniDetector, "detect", upside_down)
    turned = photo(size=(100, 100)).transpose(Image.Transpose.ROTATE_180)
    turned = inpaint_photo(pipe, encoder, turned, None, region="eyes", **FEW)
    assert (np.rot90(turned.hole, 2) ^ upright.hole).mean() < 0.03
    difference = np.abs(np.rot90(np.asarray(turned.image), 2).astype(int) - np.asarray(upright.image))
    assert difference[upright.hole].mean() < 1  # a face that is not turned in place differs by about 4


def test_of_several_faces_the_one_like_the_references_is_filled(pipe, encoder, monkeypatch):
    monkeypatch.setattr(MiniDetector, "detect", two_faces)
    double = np.concatenate([np.asarray(photo(1, (100, 100))), np.asarray(photo(2, (100, 100)))], 1)
    holes = []
    for person in (1, 2):
        monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)
        anna = read_references(pipe, encoder, [photo(person, (100, 100))])
        monkeypatch.setattr(MiniDetector, "detect", two_faces)
        holes.append(inpaint_photo(pipe, encoder, Image.fromarray(double), anna, region="whole", **FEW).hole)
    assert np.argwhere(holes[0])[:, 1].mean() < 100 < np.argwhere(holes[1])[:, 1].mean()


def test_an_aligned_portrait_needs_no_face(pipe, encoder, monkeypatch):
    monkeypatch.setattr(MiniDetector, "detect", nobody)
    mask = np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    done = inpaint_photo(pipe, encoder, photo(size=(32, 32)), None, mask=mask, aligned=True, **FEW)
    assert np.array_equal(np.asarray(done.image)[mask], np.asarray(done.after)[mask])
    with pytest.raises(IdgenError, match="no face found"):
        inpaint_photo(pipe, encoder, photo(size=(32, 32)), None, region="eyes", aligned=True, **FEW)
    with pytest.raises(IdgenError, match="a portrait is square"):
        inpaint_photo(pipe, encoder, photo(), None, mask=np.eye(70, 90, dtype=bool), aligned=True, **FEW)


def test_a_grey_photo_stays_grey(pipe, encoder):
    done = inpaint_photo(pipe, encoder, photo().convert("L").convert("RGB"), None, region="whole", **FEW)
    assert np.ptp(np.asarray(done.image).astype(int), axis=-1).max() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either a mask or a region"),
        ({"region": "ear"}, "unknown region 'ear'"),
        ({"mask": np.zeros((70, 90), bool)}, "covers nothing"),
        ({"mask": np.ones((70, 90), bool)}, "covers everything"),
        ({"mask": np.eye(90, dtype=bool)}, "90 x 90 pixels and the picture 90 x 70"),
    ],
)
def test_holes_that_can_not_be_are_told(pipe, encoder, options, message):
    with pytest.raises(IdgenError, match=message):
        inpaint_photo(pipe, encoder, photo(), None, **options)


def test_faces_that_are_missing_or_too_small_are_told(pipe, encoder, monkeypatch):
    with pytest.raises(IdgenError, match="too small"):
        inpaint_photo(pipe, encoder, photo(size=(30, 20)), None, region="eyes")
    monkeypatch.setattr(MiniDetector, "detect", nobody)
    with pytest.raises(IdgenError, match="no face found"):
        inpaint_photo(pipe, encoder, photo(), None, region="eyes")
    for read in (read_references, lambda *given: personalise(*given[:1], given[2], encoder=given[1])):
        with pytest.raises(IdgenError, match="no face found"):
            read(pipe, encoder, [photo()])


def test_a_pipeline_with_a_recogniser_of_its_own_sees_portraits(pipe, encoder):
    pipe.pva.config = PVAConfig(recogniser="ms1mv3_r50", out_dim=512, num_layer=1)
    with pytest.raises(IdgenError, match="'mini'"):
        inpaint_photo(pipe, encoder, photo(), encoder(photo(1)), region="eyes", **FEW)
    pipe.recogniser = IResNet((1, 1, 1, 1), (4, 4, 4, 4)).eval()
    anna = read_references(pipe, encoder, [photo(1)])
    assert anna.recogniser == "ms1mv3_r50" and len(anna) == 1
    assert not inpaint_photo(pipe, encoder, photo(), anna, region="eyes", **FEW).notes
    # One person is learned as the authors do, and with that recogniser's opinion where it is asked for.
    calls = []
    pipe.recogniser.register_forward_hook(lambda *given: calls.append(1))
    default, asked = (
        personalise(pipe, [photo(1)], 1, encoder=encoder, identity_weight=weight).changes for weight in (None, 1.0)
    )
    assert len(calls) == 2 + 2 + 1, "two references each, and the prediction once"
    assert set(default) == set(asked)
    assert any(not torch.equal(value, asked[name]) for name, value in default.items())


@pytest.mark.parametrize("variant", ["visual", "lora"])
@pytest.mark.parametrize("photos", [1, 3])
def test_few_steps_change_the_model_for_one_person_and_back(pipe, encoder, tmp_path, variant, photos):
    anna = [photo(seed) for seed in range(photos)]
    identity = read_references(pipe, encoder, anna)
    names = [name for name, _ in pipe.unet.named_modules()]
    weights = {name: value.clone() for name, value in [*pipe.unet.state_dict().items(), *pipe.pva.state_dict().items()]}
    grads = [value.requires_grad for value in pipe.unet.parameters()]
    plain = fill(pipe, encoder, identity)

    person = personalise(pipe, anna, 3, variant, encoder=encoder, learning_rate=1e-2)
    assert [value.requires_grad for value in pipe.unet.parameters()] == grads
    assert np.array_equal(fill(pipe, encoder, identity), plain), "training must leave the pipeline as it was"

    person.save(tmp_path / "anna.safetensors")
    pipe.load_person(tmp_path / "anna.safetensors")
    assert not np.array_equal(fill(pipe, encoder, identity), plain)
    with pytest.raises(IdgenError, match="unload_person"):
        pipe.save_pretrained(tmp_path / "no")
    pipe.unload_person()
    assert np.array_equal(fill(pipe, encoder, identity), plain)
    assert [name for name, _ in pipe.unet.named_modules()] == names
    now = pipe.unet.state_dict() | pipe.pva.state_dict()
    assert all(torch.equal(value, now[name]) for name, value in weights.items())
    again = personalise(pipe, anna, 3, variant, encoder=encoder, learning_rate=1e-2)
    assert all(torch.equal(value, again.changes[name]) for name, value in person.changes.items()), "the same seed"


def fill(pipe, encoder, identity):
    return np.asarray(inpaint_photo(pipe, encoder, photo(9), identity, region="whole", **FEW).image)


def test_the_loss_of_one_photo_falls(pipe, encoder, monkeypatch):
    losses, first = [], []
    train = module.train_on_bins

    def the_same_again(denoiser, optimizer, scheduler, *given):
        """Chance would hide what a few steps do."""
        first.extend(given if not first else ())
        losses.append(train(denoiser, optimizer, scheduler, *first).mean())

    monkeypatch.setattr(module, "train_on_bins", the_same_again)
    for variant, share in (("visual", 0.98), ("lora", 0.98)):
        personalise(pipe, [photo()], 12, variant, encoder=encoder, learning_rate=1e-2)
        assert losses[-1] < share * losses[-12]


def test_identity_is_read_in_the_decoded_prediction_the_right_way_round(pipe, encoder, monkeypatch):
    """As `identity_weight` times what is left of the picture times the distance, of photos and of mirrored ones."""
    told, sides = [], []
    train = module.train_on_bins

    def listen(denoiser, optimizer, scheduler, batch, times, noise, accumulate, more):
        prediction, noised = training.predict_hole(denoiser, scheduler, batch, times[0], noise[0])
        told.append((prediction.detach(), noised, more(prediction, noised).item()))
        return train(denoiser, optimizer, scheduler, batch, times, noise, accumulate, more)

    find = module.make_holes

    def note_sides(vae, picture, hole):
        sides.append(not torch.equal(picture.float(), upright))
        return find(vae, picture, hole)

    image = photo()
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    portrait = _cut_largest(encoder, image, size)
    upright = as_tensor(np.asarray(portrait.image)[None], torch.device("cpu"))
    monkeypatch.setattr(module, "train_on_bins", listen)
    monkeypatch.setattr(module, "make_holes", note_sides)
    personalise(pipe, [image], 8, encoder=encoder, identity_weight=2.0, learning_rate=1e-9)
    assert sorted(sides) == [False, True]
    landmarks = torch.from_numpy(portrait.landmarks)[None].float()
    person = torch.nn.functional.normalize(read_references(pipe, encoder, [image]).raw, dim=1).mean(0)
    fits = set()
    for prediction, noised, value in told:
        abar = pipe.scheduler.alphas_cumprod[noised.timesteps]
        clean = module.predicted_latents(pipe.scheduler, prediction, noised)
        pictures = pipe.vae.decode(clean / pipe.vae.config.scaling_factor).sample
        for turned in (False, True):
            seen = pictures.flip(3) if turned else pictures
            crops = norm_crop_torch(seen, landmarks.expand(len(seen), -1, -1))
            distances = 1 - torch.nn.functional.cosine_similarity(encoder.encode_aligned(crops), person[None])
            if value == pytest.approx((2 * (abar.sqrt() * distances).mean()).item(), rel=1e-4):
                fits.add(turned)
    assert fits == {False, True}, "some photos as they are, some mirrored"
    photos = module.PersonPhotos(*[torch.zeros(1)] * 5)
    with pytest.raises(IdgenError, match="needs the recogniser: pass look"):
        module.train_person(pipe, photos, identity_weight=1.0)


@pytest.mark.parametrize("theirs", [torch.float32, torch.float16, torch.bfloat16])
def test_a_person_s_weights_know_their_model_in_any_precision(pipe, encoder, theirs):
    pipe.pva.to(theirs)
    person = PersonWeights("visual", {}, fingerprint(pipe.pva))
    hashed = hashlib.sha256(pipe.pva.transform_network.q_tokens.detach().half().numpy().tobytes()).hexdigest()[:16]
    pipe.load_person(PersonWeights("visual", {}, hashed))  # as files of before say it
    for ours in (torch.float16, torch.bfloat16, torch.float32):
        pipe.load_person(person).pva.to(ours)
    pipe.load_person(person).unload_person()
    pipe.pva.transform_network.q_tokens.data.mul_(1.01)
    for stranger in (person, PersonWeights("visual", {}, hashed), PersonWeights("visual", {}, "a b")):
        with pytest.raises(IdgenError, match="another PVA model"):
            pipe.load_person(stranger)


def test_a_user_s_own_lora_stays_beside_a_person_s(pipe, encoder):
    from peft import LoraConfig

    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "style")
    person = personalise(pipe, [photo()], 1, "lora", encoder=encoder)
    pipe.load_person(person)
    assert set(pipe.unet.active_adapters()) == {"style", "idgen_person"}
    pipe.unload_person()
    assert pipe.unet.active_adapters() == ["style"]


def test_people_of_other_models_and_other_files_are_refused(pipe, encoder, tmp_path):
    person = personalise(pipe, [photo()], 0, encoder=encoder)
    assert not person.changes and repr(person) == "PersonWeights(visual, 0.0 MB)"
    stranger = PersonWeights("visual", {"modifier": torch.ones(512)}, "another")
    with pytest.raises(IdgenError, match="made with another PVA model"):
        pipe.load_person(stranger)
    wrong = PersonWeights("visual", {"nothing": torch.ones(2)}, person.model)
    with pytest.raises(IdgenError, match="do not fit this PVA model: nothing"):
        pipe.load_person(wrong)
    pipe.pva.save(tmp_path / "adapter.safetensors")
    for path, says in (("adapter.safetensors", "is an identity adapter"), ("FPIP.bin", "holds no person's weights")):
        with pytest.raises(IdgenError, match=says):
            pipe.load_person(tmp_path / path)
    with pytest.raises(IdgenError, match="'text' is unknown: use 'visual' or 'lora'"):
        personalise(pipe, [photo()], variant="text", encoder=encoder)
    with pytest.raises(IdgenError, match="no photo given"):
        personalise(pipe, [], encoder=encoder)


def test_a_person_of_stable_diffusion_2_takes_less_than_20_mb():
    """16 layers: queries (hidden, hidden), keys and values (hidden, 1024)."""
    hidden = [320] * 5 + [640] * 5 + [1280] * 6
    shapes = [shape for width in hidden for shape in ((width, width), (width, 1024), (width, 1024))]
    stored = [compress("weight", torch.zeros(shape)) for shape in shapes]
    visual = sum(value.nbytes for one in stored for value in one.values())
    lora = sum(4 * 16 * sum(shape) for shape in [*shapes, *((width, width) for width in hidden)])
    assert 18e6 < visual + 4 * 1024 < 20e6 and lora + 4 * 1024 < 20e6


@pytest.mark.parametrize("shape", [(40, 60), (3, 7), (5,)])
def test_a_change_is_kept_to_within_a_fourteenth_of_its_rows_largest(shape):
    change = torch.randn(shape) * 1e-4
    stored = compress("weight", change)
    again = expand(stored)["weight"][..., : shape[-1]]
    largest = change.abs().amax(-1, keepdim=True)
    assert ((again - change).abs() <= largest / 14 * 1.001).all()
    assert (again - change).norm() < 0.15 * change.norm()
    assert expand(compress("weight", torch.zeros(4, 4)))["weight"].abs().max() == 0


def nobody(self, images, threshold=0.5):
    return [Detections(torch.zeros(0, 4), torch.zeros(0, 5, 2), torch.zeros(0)) for _ in images]


def a_small_face(self, images, threshold=0.5):
    """At the left of a photo of 300 x 200."""
    (one,) = face_in_the_middle(self, [np.zeros((100, 100, 3))])
    return [Detections(one.boxes + 20, one.landmarks + 20, one.scores) for _ in images]


def two_faces(self, images, threshold=0.5):
    """Two portraits side by side."""
    (one,) = face_in_the_middle(self, [np.zeros((100, 100, 3))])
    shift = torch.tensor([100.0, 0.0])
    boxes = torch.cat([one.boxes, one.boxes + shift.repeat(2)])
    return [Detections(boxes, torch.cat([one.landmarks, one.landmarks + shift]), one.scores.repeat(2)) for _ in images]
