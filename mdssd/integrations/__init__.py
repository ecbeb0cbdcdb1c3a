"""Replace the slow parts of other SSD codebases by this project's operators.

Each module (`torchvision`, `ssd_pytorch`, `lufficc`, `qfgaohao`, `nvidia`) has a function `patch`
for one codebase. No module imports its codebase; the caller passes the package or the model to
patch. docs/integrations.md lists them in one table. `supervision` is another kind: it converts
detections.
"""
