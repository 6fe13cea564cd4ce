"""PhotoMaker v2 (Li et al., CVPR 2024, arXiv 2312.04461; github.com/TencentARC/PhotoMaker): the face in the class word.

Two tokens per photo, made of its face embedding and of CLIP's view of it, are fused into the rows of the prompt embeddings
that the class word ("man", followed by the trigger "img") takes up.
"""

from idgen.adapters.photomaker.convert import PhotoMakerParts, load_identity_fuser, read_photomaker
from idgen.adapters.photomaker.fuse import FuseModule, IdentityFuser, QFormerPerceiver

__all__ = [
    "FuseModule",
    "IdentityFuser",
    "PhotoMakerParts",
    "QFormerPerceiver",
    "load_identity_fuser",
    "read_photomaker",
]
