"""Linear regions as users meet them: domains, and the complex of all regions in one."""

from refmmr.regions.api import enumerate_regions
from refmmr.regions.complex import DecisionBoundary, RegionComplex
from refmmr.regions.domains import Box, Segment, Slice
from refmmr.regions.facets import Facets
from refmmr.regions.graph import AffineMaps, RegionGraph
from refmmr.regions.ragged import Ragged

__all__ = [
    "AffineMaps",
    "Box",
    "DecisionBoundary",
    "Facets",
    "Ragged",
    "RegionComplex",
    "RegionGraph",
    "Segment",
    "Slice",
    "enumerate_regions",
]
