"""The book: the method in plain NumPy, one idea a file.

Read it in this order: `layers`, `network`, `loss`, `affine`, `distances`, `mmr`, `attacks`,
`regions`.  Arguments are taken as they come; the public functions of `refmmr` check them first.
"""
