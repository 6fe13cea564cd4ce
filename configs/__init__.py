"""The recipes of the trainings, as YAML: this folder is installed as `idgen.configs`."""

if __name__ != "idgen.configs":
    # The checkout's root is on sys.path: a second copy of every module would be made beside idgen's own.
    raise ImportError("import idgen.configs, not configs (pip install -e . makes it importable)")
