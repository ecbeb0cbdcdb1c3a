"""Replace the slow parts of other detection codebases by this project's operators.

Each module has a function `patch` for the codebase of its name. No module imports its codebase; the
caller passes the package or the model to patch. docs/integrations.md lists them in one table.
`supervision` converts detections, too.
"""
