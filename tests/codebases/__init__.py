"""The behaviour of other SSD codebases in plain PyTorch, in packages laid out like theirs.

Each name that an adapter replaces is in the same place as in the codebase, and is used from there.
Two things that the originals leave undefined are defined here: equal scores are ranked by the lower
index, and so are equal losses in the mining.
"""
