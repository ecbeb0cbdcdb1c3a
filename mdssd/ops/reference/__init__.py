"""The operators in plain PyTorch: what every other backend is compared with.

Each file has one function per op, of the op's name. Half types are computed in float32.
"""
