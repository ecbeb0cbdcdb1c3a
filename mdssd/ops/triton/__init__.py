"""The operators in Triton: one file per op family, imported when an op first runs on this backend.

Every kernel computes in float32; float64 tensors go to the reference before they come here. With
TRITON_INTERPRET=1 set before the first import, Triton runs the kernels on CPU tensors, slowly.
"""
