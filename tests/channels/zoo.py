"""Kinds of model of our own making, tiny, each with what the engine should find in it: over a hundred."""

from importlib import import_module

from channels.kinds import ENTERED

for _file in ("cnn", "joins", "norms", "attention", "vision", "text", "odd", "hostile"):
    import_module(f"channels.zoo_{_file}")

ZOO = tuple(ENTERED)
BY_NAME = {one.name: one for one in ZOO}
