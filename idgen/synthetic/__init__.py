"""Synthetic people: sample a person, sample shots of that person, render them with ground truth.

person = sample_person(seed=0, person=12)
shot = sample_shot(seed=0, person=person, shot=3)
batch = Renderer().render([person], [shot], size=128)
"""

from idgen.synthetic.attributes import Attributes, attributes
from idgen.synthetic.people import Person, same_appearance, sample_person
from idgen.synthetic.renderer import RenderBatch, Renderer
from idgen.synthetic.shading import PARSING_CLASSES
from idgen.synthetic.shots import Shot, sample_shot

__all__ = [
    "PARSING_CLASSES",
    "Attributes",
    "Person",
    "RenderBatch",
    "Renderer",
    "Shot",
    "attributes",
    "same_appearance",
    "sample_person",
    "sample_shot",
]
