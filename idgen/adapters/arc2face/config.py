"""What defines an Arc2Face model beside its weights."""

from __future__ import annotations

from dataclasses import dataclass

from idgen.errors import IdgenError


@dataclass(frozen=True)
class Arc2FaceConfig:
    """The prompt whose one word stands for the face, and the recogniser whose embeddings replace it.

    The defaults are the authors'. Their recogniser is an IResNet-100 of their own (arcface.onnx in their
    repository, trained on WebFace42M), not the one inside antelopev2.
    """

    recogniser: str = "arc2face"
    prompt: str = "photo of a id person"
    token: str = "id"
    embedding_dim: int = 512

    def __post_init__(self) -> None:
        if self.prompt.split().count(self.token) != 1:
            raise IdgenError(f"the prompt {self.prompt!r} must hold the word {self.token!r} exactly once")
        if self.embedding_dim < 1:
            raise IdgenError(f"embedding_dim is {self.embedding_dim}, expected a positive number")
