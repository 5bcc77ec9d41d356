"""The book: the method in plain NumPy, one idea a file.

Read it in this order: `layers`, `network`, `loss`, `affine`, `hyperplanes`, `distances`, `mmr`,
`adam`, `attacks`, `rounding`.  Then all regions: `regions`, `volumes`, `winners`, `polygons`,
`incircles`.  Then bounds and attacks on balls: `balls`, `intervals`, `relaxations`, `wong_kolter`,
`minimal_attack`, `universal`.  Arguments are taken as they come; the public functions of `refmmr`
check them first.
"""
