"""The book: the method in plain NumPy, one idea a file.

Read it in this order: `layers`, `network`, `loss`, `affine`, `hyperplanes`, `distances`, `mmr`,
`adam`, `attacks`, `rounding`, `regions`.  Arguments are taken as they come; the public functions of
`refmmr` check them first.
"""
