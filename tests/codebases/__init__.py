"""What other SSD codebases do, written plainly in PyTorch, in packages laid out like theirs.

Each name that an adapter replaces is where the codebase has it, and is used from there. Two things
are settled that the originals leave open: equal scores rank by the lower index, and so do equal
losses in the mining.
"""
