"""The diffusers pipelines: this folder is installed as `idgen.pipelines`."""

if __name__ != "idgen.pipelines":
    # The checkout's root is on sys.path: a second copy of every module would be made beside idgen's own.
    raise ImportError("import idgen.pipelines, not pipelines (pip install -e . makes it importable)")
