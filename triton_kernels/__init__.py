"""Triton kernels, installed as `tmem.triton_kernels`: another package owns the plain name."""

if __name__ != "tmem.triton_kernels":
    raise ImportError(f"this is tmem's kernel folder, imported as {__name__!r}; import it as 'tmem.triton_kernels'")
