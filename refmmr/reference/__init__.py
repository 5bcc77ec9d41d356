"""The book: the method in plain NumPy, one idea a file.

Read it in this order.  The method: `layers`, `network`, `loss`, `affine`, `hyperplanes`,
`distances`, `mmr`, `adam`, `pgd`, `rounding`.  All linear regions: `cells`, `vertices`,
`enumeration`, `volumes`, `class_pieces`, `polygons`, `incircles`.  Bounds on a ball: `ball`,
`intervals`, `backward_bound`, `radius`, `wong_kolter`, `universal`.  Arguments are taken as they
come; the public functions of `refmmr` check them first.
"""
