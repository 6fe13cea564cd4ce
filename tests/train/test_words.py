"""The loss of words: what it asks for, what it leaves open, and that it teaches."""

import math
from pathlib import Path

import pytest
import torch

from idgen.data.faces import FaceFolder
from idgen.data.portraits import mirrored_caption
from idgen.errors import IdgenError
from idgen.losses.attributes import unmet_words
from idgen.models.mini_family import build_scheduler
from idgen.models.probe import load_probe
from idgen.train.identity_settings import WordsLossConfig
from idgen.train.words import WordsLoss, admitted_values

YES, NO = True, False


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).log()


def test_any_of_the_values_that_the_words_describe_will_do() -> None:
    read = {"head": logits([0.5, 0.3, 0.2])}
    one = unmet_words(read, {"head": torch.tensor([[YES, NO, NO]])})
    two = unmet_words(read, {"head": torch.tensor([[YES, NO, YES]])})
    assert one.item() == pytest.approx(-math.log(0.5), abs=1e-5)
    assert two.item() == pytest.approx(-math.log(0.7), abs=1e-5)


def test_what_the_caption_leaves_open_costs_nothing_and_teaches_nothing() -> None:
    head = torch.randn(2, 3, requires_grad=True)
    loss = unmet_words({"head": head}, {"head": torch.tensor([[YES, YES, YES], [NO, YES, NO]])})
    loss.sum().backward()
    assert loss[0] == 0 and loss[1] > 0
    assert not head.grad[0].any() and head.grad[1].any()


def test_attributes_add_up_and_others_are_passed_over() -> None:
    read = {"head": logits([0.5, 0.5]), "glasses": logits([0.25, 0.75]), "beard": logits([0.1, 0.9])}
    asked = {"head": torch.tensor([[YES, NO]]), "glasses": torch.tensor([[YES, NO]])}
    assert unmet_words(read, asked).item() == pytest.approx(-math.log(0.125), abs=1e-5)


def test_captions_admit_what_their_pictures_show(people_folder: Path) -> None:
    data = FaceFolder.open(people_folder)
    probe = load_probe()
    admitted = admitted_values(data, probe.classes)
    assert {"expression", "head", "hair_style"} <= set(admitted)
    silent = said = 0
    for name, table in admitted.items():
        names = probe.classes[name]
        for row, allowed in zip(data.rows, table, strict=True):
            value = str(row["attributes"][name])
            if allowed.all():
                silent += 1
            else:
                said += 1
                assert allowed[names.index(value)], (row["caption"], name, value)
    assert silent and said


def test_a_picture_of_its_caption_costs_less_than_another_one(people_folder: Path) -> None:
    """The shipped probe stands in for a reader; latents that decode to themselves for an autoencoder."""
    loss, data = words_loss(people_folder)
    photos = torch.arange(len(data))
    pictures = torch.from_numpy(data.images[:]).permute(0, 3, 1, 2).float() / 127.5 - 1
    times, told = torch.zeros(len(data), dtype=torch.long), torch.ones(len(data), dtype=torch.bool)
    right = loss(pictures, times, photos, told)
    wrong = loss(pictures.roll(1, 0), times, photos, told)
    assert right < 0.7 * wrong
    mirrored = torch.ones(len(data), dtype=torch.bool)
    assert torch.allclose(loss(pictures.flip(3), times, photos, told, mirrored), right, atol=1e-4)
    assert loss(pictures, times, photos, ~told) == 0
    assert loss(pictures, times + 900, photos, told) < 0.2 * right, "less the more noise there is"


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
