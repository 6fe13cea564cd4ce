"""The trainings: this folder is installed as `idgen.train`."""

if __name__ != "idgen.train":
    # The checkout's root is on sys.path: a second copy of every module would be made beside idgen's own.
    raise ImportError("import idgen.train, not train (pip install -e . makes it importable)")
