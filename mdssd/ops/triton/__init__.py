"""The operators in Triton: one file per op family, imported when an op first runs on this backend.

Block sizes and warps are constants, or follow from the shape by a line of arithmetic; each file
says why. They were chosen by reasoning and by the compiler's report of registers and spills
(resources.txt), since no GPU was at hand. They are not tuned at run time: a first call would have
to measure, which it cannot while a CUDA graph is captured, and where a size sets the order of a
sum, its last bits would depend on the outcome.

Every kernel computes in float32; float64 tensors go to the reference before they come here. With
TRITON_INTERPRET=1 set before the first import, Triton runs the kernels on CPU tensors, slowly.
"""
