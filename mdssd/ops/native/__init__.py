"""The operators on the native backends: calls of the entry points that csrc/ops.h declares.

Each file has two forms per op: `<op>_cpp` calls mdssd._C; `<op>_cuda` also takes the module whose
kernels it calls, mdssd._C or mdssd._simt, and a stream. An entry point takes a tensor for each
array, so a form only makes the inputs dense and in the right dtype, and allocates the results.
"""
