"""The linear regions of a network in a domain: enumeration, their complex, files and pictures."""

from refmmr.regions.api import enumerate_regions
from refmmr.regions.complex import RegionComplex
from refmmr.regions.decision import DecisionBoundary
from refmmr.regions.domains import Box, Segment, Slice
from refmmr.regions.facets import Facets
from refmmr.regions.graph import AffineMaps, LinearRegions, RegionGraph
from refmmr.regions.ragged import Ragged

__all__ = [
    "AffineMaps",
    "Box",
    "DecisionBoundary",
    "Facets",
    "LinearRegions",
    "Ragged",
    "RegionComplex",
    "RegionGraph",
    "Segment",
    "Slice",
    "enumerate_regions",
]
