"""The operators in Triton, with one file per family.

A file is imported when one of its operators first runs on this backend.

Block sizes and numbers of warps are constants or simple functions of the shape. They were chosen by
reasoning and by the compiler's report of registers and spills (resources.txt), without measuring on
a GPU. They are not tuned at run time for two reasons: tuning is impossible while a CUDA graph is
captured, and block sizes determine the order of sums, so the last bits of results would depend on
the measurements.

All kernels compute in float32; for float64, the operators call the reference instead. If
TRITON_INTERPRET=1 is set before the first import, Triton runs the kernels, slowly, on CPU tensors.
"""
