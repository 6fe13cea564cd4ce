"""Marks on what we generate, so that a picture says of itself that nobody took it with a camera.

A PNG carries a text chunk of ours and the IPTC's `trainedAlgorithmicMedia` source type in XMP, which picture services
read. Marks in a file's metadata are honest labels: they do not survive a screenshot, nor somebody who removes them.
"""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image, PngImagePlugin

from idgen.errors import IdgenError
from idgen.files import atomic_write

KEYWORD, TEXT = "idgen", "AI-generated"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""


def save_png(path: str | os.PathLike[str], image: Image.Image) -> None:
    """Write a generated picture with its marks, whole or not at all.

    Raises:
        IdgenError: another suffix than .png, or a folder that can not be written to.
    """
    if Path(path).suffix.lower() != ".png":
        raise IdgenError(f"{path}: generated pictures are written as PNG: let the name end in .png")
    marks = PngImagePlugin.PngInfo()
    marks.add_text(KEYWORD, TEXT)
    marks.add_itxt("XML:com.adobe.xmp", XMP)
    with atomic_write(path) as temporary:
        image.save(temporary, pnginfo=marks)


def is_marked(path: str | os.PathLike[str]) -> bool:
    """Whether a picture bears our mark."""
    with Image.open(path) as image:
        return image.info.get(KEYWORD) == TEXT
