"""How the kernels are compiled."""

import numba

# Sums may be added up in any order and products fused with them; infinities and NaNs stay legal.
jit = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
