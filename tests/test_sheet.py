"""Contact sheets show every picture, whole and labelled."""

import numpy as np
import pytest
from PIL import Image

from idgen.sheet import SheetRow, contact_sheet

RED, BLUE = Image.new("RGB", (40, 40), (255, 0, 0)), Image.new("RGB", (20, 40), (0, 0, 255))


def colour_pixels(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(sheet) == colour).all(-1).sum())


def test_every_picture_is_shown_at_the_cell_size_and_keeps_its_aspect_ratio() -> None:
    sheet = contact_sheet([SheetRow([RED, BLUE])], cell=40)
    assert colour_pixels(sheet, (255, 0, 0)) == 40 * 40
    assert colour_pixels(sheet, (0, 0, 255)) == 20 * 40


def test_labels_and_titles_add_ink_and_do_not_cover_the_pictures() -> None:
    bare = contact_sheet([SheetRow([RED, RED])], cell=64)
    labelled = contact_sheet([SheetRow([RED, RED], ["0.81", "0.79"], "references")], cell=64)
    assert colour_pixels(labelled, (255, 0, 0)) == colour_pixels(bare, (255, 0, 0))
    assert (np.asarray(labelled).sum(-1) < 300).sum() > (np.asarray(bare).sum(-1) < 300).sum() + 50


def test_rows_longer_than_the_columns_are_wrapped() -> None:
    sheet = contact_sheet([SheetRow([RED] * 5, list("abcde"))], cell=32, columns=2)
    assert sheet.width < 3 * 32 + 30
    assert colour_pixels(sheet, (255, 0, 0)) == 5 * 32 * 32


def test_a_label_wider_than_its_cell_is_cut_rather_than_run_into_the_next() -> None:
    long = contact_sheet([SheetRow([RED, RED], ["W" * 100, ""])], cell=64)
    ink = np.asarray(long).sum(-1)[-20:, 64 + 8 + 8 :]
    assert (ink > 700).all()


@pytest.mark.parametrize("rows", [[], [SheetRow([])], [SheetRow([RED], ["a", "b"])]])
def test_an_empty_sheet_or_labels_that_do_not_match_are_refused(rows: list[SheetRow]) -> None:
    with pytest.raises(ValueError, match="picture"):
        contact_sheet(rows)
