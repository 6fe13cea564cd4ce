"""Identities are in no repr: not in that of what a call carries, nor in a traceback's or a log's."""

import torch

from idgen.adapters.call import Active
from idgen.adapters.injections.listening import _Listener
from idgen.adapters.pva.prompt import PersonPrompts
from idgen.adapters.pva.training import HoleBatch
from tests.adapters.bases import tiny_unet
from tests.adapters.cases import CASES


def test_no_repr_of_a_call_shows_an_identity():
    shown = []
    for case in CASES:
        unet = tiny_unet(case.bases[0])
        adapter = case.build(unet).inject(unet)
        with torch.no_grad():
            conditioning = adapter.condition([case.person(0)], **case.inputs(1))
        entry = conditioning.entries[0]
        parts = [part for here in entry.parts.values() for part in here]
        shown += [conditioning, entry, *parts, *(Active(part, 1.0, None) for part in parts)]
    words = PersonPrompts(torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool))
    shown += [HoleBatch(*(torch.ones(1, 2, 3) for _ in range(4)), words), _Listener({}, heard=[torch.ones(2)])]
    assert not [type(one).__name__ for one in shown if "tensor(" in repr(one)]
