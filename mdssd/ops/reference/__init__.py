"""The operators in plain PyTorch, with which the tests compare every other backend.

Each file has one function per op, of the op's name. Half types are computed in float32.
"""
