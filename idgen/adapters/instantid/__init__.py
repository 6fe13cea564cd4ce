"""InstantID (Wang et al., 2024, arXiv 2401.07519; github.com/InstantID/InstantID): a face as tokens, its pose as points."""

from idgen.adapters.instantid.adapter import FaceEntry, InstantIDAdapter, face_tokens
from idgen.adapters.instantid.config import InstantIDConfig
from idgen.adapters.instantid.identitynet import FaceCall
from idgen.adapters.instantid.keypoints import draw_keypoints
from idgen.adapters.methods import Method

METHOD = Method(
    name="instantid",
    title="InstantID",
    bases=("SDXL",),
    recogniser="antelopev2's glintr100, and five key points",
    norm="raw",
    injections=("decoupled cross-attention", "ControlNet context"),
    files="InstantX/InstantID: ip-adapter.bin, ControlNetModel/",
    verified="face tokens, key-point picture, attention, IdentityNet and sampling (goldens instantid_*)",
    licence="for research only (README of github.com/InstantID/InstantID), the recogniser's too",
    adapter=InstantIDAdapter,
    paper="arXiv 2401.07519",
)

__all__ = ["METHOD", "FaceCall", "FaceEntry", "InstantIDAdapter", "InstantIDConfig", "draw_keypoints", "face_tokens"]
