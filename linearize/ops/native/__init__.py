"""The ops' C forms for the CPU: compiled for this machine on first use, single precision.

`build` compiles and loads, `call` hands tensors over; one file per op beside its C source.
"""
