"""The compiler options of the kernels.

- ``nogil``: threads run kernels side by side (`refmmr.backends.threads`).
- ``cache``: compiled once on a machine, then loaded from disk.  The cache of a function does not
  notice a change in another file; so a kernel, the kernels that it calls and the named tuples that
  it reads are in one file (or the source is a part of the cache's key, as for `pieces`).
- ``error_model="numpy"``: a division by 0 gives inf or NaN, not an exception.
- ``fastmath``: sums may be added in any order (``reassoc``, so that they are vectorised), and
  products fused with them (``contract``).  Infinities and NaNs stay legal: a distance may be
  infinite.

`strict_jit` has no ``fastmath``: each operation rounds as in NumPy.  It is for the enumeration of
regions, whose signs are decided by bounds on these rounding errors.
"""

import numba

jit = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})

strict_jit = numba.njit(nogil=True, cache=True, error_model="numpy")
