"""What only PVA's adapter does: guidance that compares with the same people under other words."""

import torch

from tests.adapters.bases import call_arguments, predict, rows_of, tiny_unet
from tests.adapters.cases import CASES, identity

PVA = next(case for case in CASES if case.method == "pva")


def test_with_visual_null_each_negative_row_looks_at_its_own_person():
    unet = tiny_unet("sd2-inpaint")
    adapter = PVA.build(unet).inject(unet)
    people = [identity("ms1mv3_r50", 1)(0), identity("ms1mv3_r50", 3)(1)]
    arguments = call_arguments(unet, 8)
    with torch.no_grad():
        together = predict(unet, arguments, adapter.condition(people, images=2, visual_null=True))
        for index, person in enumerate(people):
            rows = [2 * index, 2 * index + 1, 4 + 2 * index, 5 + 2 * index]
            alone = predict(unet, rows_of(arguments, rows), adapter.condition(person, images=2, visual_null=True))
            torch.testing.assert_close(together[rows], alone, atol=1e-5, rtol=0)
        nobody = predict(unet, arguments, adapter.condition(people, images=2))
    assert not torch.allclose(nobody[:4], together[:4], atol=1e-3)
    torch.testing.assert_close(nobody[4:], together[4:], atol=1e-5, rtol=0)
