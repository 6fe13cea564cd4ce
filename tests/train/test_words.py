"""The loss of words: what it asks for, what it leaves open, and that it teaches."""

import math
from pathlib import Path

import pytest
import torch

from idgen.data.faces import FaceFolder
from idgen.data.portraits import mirrored_caption
from idgen.errors import IdgenError
from idgen.losses.attributes import misread_words
from idgen.models.mini_family import build_scheduler
from idgen.models.probe import load_probe
from idgen.train.loss_settings import WordsLossConfig
from idgen.train.words import WordsLoss, named_attributes


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).log()


def told(*pictures: bool) -> torch.Tensor:
    return torch.tensor(pictures)


def test_it_is_the_divergence_of_the_readings() -> None:
    read, wanted = {"head": logits([0.5, 0.3, 0.2])}, {"head": logits([0.7, 0.2, 0.1])}
    expected = 0.7 * math.log(0.7 / 0.5) + 0.2 * math.log(0.2 / 0.3) + 0.1 * math.log(0.1 / 0.2)
    assert misread_words(read, wanted, {"head": told(True)}).item() == pytest.approx(expected, abs=1e-5)
    assert misread_words(wanted, wanted, {"head": told(True)}).item() == pytest.approx(0, abs=1e-6)


def test_being_surer_than_of_the_photo_is_no_gain() -> None:
    wanted, surer = {"head": logits([0.7, 0.3])}, {"head": logits([0.99, 0.01])}
    assert misread_words(surer, wanted, {"head": told(True)}) > 0.5


def test_what_the_caption_leaves_open_costs_nothing_and_teaches_nothing() -> None:
    head, photo = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    loss = misread_words({"head": head}, {"head": photo}, {"head": told(False, True)})
    loss.sum().backward()
    assert loss[0] == 0 and loss[1] > 0
    assert not head.grad[0].any() and head.grad[1].any() and photo.grad is None


def test_attributes_add_up_and_others_are_passed_over() -> None:
    read = {"head": logits([0.5, 0.5]), "glasses": logits([0.25, 0.75]), "beard": logits([0.1, 0.9])}
    wanted = {name: logits([0.6, 0.4]) for name in read}
    one, other = (misread_words(read, wanted, {name: told(True)}) for name in ("head", "glasses"))
    both = misread_words(read, wanted, {"head": told(True), "glasses": told(True)})
    assert both.item() == pytest.approx((one + other).item(), abs=1e-6)


def test_what_captions_name_is_found_in_them(people_folder: Path) -> None:
    data = FaceFolder.open(people_folder)
    said = named_attributes(data, [*load_probe().classes, "shoe size"])
    assert {"expression", "head", "hair_style"} <= set(said) and "shoe size" not in said
    for name, word in (("glasses", "glasses"), ("beard", "goatee")):
        named = [word in row["caption"] for row in data.rows]
        assert all(said[name][index] for index, there in enumerate(named) if there)
    assert not all(named.all() for named in said.values()), "captions leave things out"


def test_a_picture_costs_less_than_that_of_another_caption(people_folder: Path) -> None:
    """The shipped probe stands in for a reader, and pictures for their latents."""
    loss, data = words_loss(people_folder)
    photos, every = torch.arange(len(data)), torch.ones(len(data), dtype=torch.bool)
    truth = torch.from_numpy(data.images.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    times = torch.zeros(len(data), dtype=torch.long)
    near = loss(truth + 0.05 * torch.randn_like(truth), truth, times, photos, every)
    wrong = loss(truth.roll(1, 0), truth, times, photos, every)
    assert loss(truth, truth, times, photos, every) == pytest.approx(0, abs=1e-4)
    assert 0 < near < 0.3 * wrong
    assert loss(truth.roll(1, 0), truth, times, photos, ~every) == 0
    assert loss(truth.roll(1, 0), truth, times + 900, photos, every) < 0.2 * wrong, "less the more noise there is"
    mirrored = loss(truth.roll(1, 0).flip(3), truth.flip(3), times, photos, every, every)
    assert torch.allclose(mirrored, wrong, rtol=1e-3)


def test_a_loss_without_a_reader_says_what_is_missing(people_folder: Path) -> None:
    with pytest.raises(IdgenError, match="words_probe"):
        words_loss(people_folder, words_probe=None)


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        (
            "a man with light skin, facing right and glancing left",
            "a man with light skin, facing left and glancing right",
        ),
        ("a bright lefty", "a bright lefty"),
    ],
)
def test_left_is_right_in_a_mirror(caption: str, mirrored: str) -> None:
    assert mirrored_caption(caption) == mirrored


def words_loss(folder: Path, **settings: object) -> tuple[WordsLoss, FaceFolder]:
    from idgen.weights import find_mini

    values = {"output_dir": "runs/none", "words_probe": find_mini("probe"), "words_batch": 10_000} | settings
    data = FaceFolder.open(folder)
    config = WordsLossConfig(**values)
    return WordsLoss(config, data, build_scheduler(), lambda latents: latents, torch.device("cpu")), data
