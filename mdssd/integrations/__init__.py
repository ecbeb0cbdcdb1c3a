"""This project's operators in the SSD codebases of others, by one line, undone at will.

A module for each: `torchvision`, `ssd_pytorch`, `lufficc`, `qfgaohao`, `nvidia`; each has `patch`.
None imports the codebase: what to patch is passed in. docs/integrations.md has all in one table.
"""
