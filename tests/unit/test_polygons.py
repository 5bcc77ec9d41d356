import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from refmmr.reference import polygons
from refmmr.reference.incircles import inradii
from refmmr.reference.polygons import areas, centroids, projections, to_polygons, to_segments
from refmmr.testing import fractions

INF = np.inf
SQUARE = np.array([[0.0, 0], [2, 0], [2, 2], [0, 2]])
TRIANGLE = np.array([[0.0, 0], [4, 0], [0, 3]])


def joined(*shapes):
    starts = np.cumsum([0, *(len(vertices) for vertices in shapes)])
    return starts, np.concatenate(shapes)


def moved(vertices, x, y):
    return vertices + np.array([x, y])


def regular(m, radius=1.0, turn=0.0):
    angles = 2 * np.pi * np.arange(m) / m + turn
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


@pytest.mark.parametrize(
    ("p", "distance", "nearest"), [(1, 2.5, [2, 1]), (2, 5**0.5, [1, 0.5]), (INF, 5 / 3, None)]
)
def test_one_segment_by_hand(p, distance, nearest):
    # From (2, -1.5) to the line y = x / 2: straight up in l_1, at a right angle in l_2.
    x, segment = np.array([[2.0, -1.5]]), np.array([[[-2.0, -1.0], [6, 3]]])
    if p == INF:
        nearest = [2 - 5 / 3, -1.5 + 5 / 3]
    found = to_segments(x, segment, p)
    assert_allclose(found[0], [distance], rtol=1e-15)
    assert_allclose(found[1], [nearest], rtol=1e-14)
    assert_array_equal(found[2], [0])


@pytest.mark.parametrize(("p", "distance"), [(1, 7), (2, 5), (INF, 4)])
def test_the_end_of_a_segment_is_hit_exactly(p, distance):
    segment = np.array([[[-1, 0.7], [1e-17, 0.9]]])  # b is not a + (b - a)
    for end, away in ((0, [-3, -4]), (1, [3, 4])):
        found, nearest, _ = to_segments(segment[:, end] + away, segment, p)
        assert_allclose(found, [distance], rtol=1e-15)
        assert_array_equal(nearest, segment[:, end])


@pytest.mark.parametrize("p", [1, 2, INF])
def test_segments_that_are_points(p):
    x = np.array([[0.0, 0], [10, 10]])
    segments = np.array([[[1.0, 0], [1, 0]], [[10, 11], [10, 11 + 1e-300]], [[5, 5], [5, 5]]])
    distance, nearest, index = to_segments(x, segments, p)
    assert_array_equal(distance, [1, 1])
    assert_array_equal(nearest, [[1, 0], [10, 11]])
    assert_array_equal(index, [0, 1])


def test_no_segments_and_no_points():
    distance, nearest, index = to_segments(np.zeros((2, 2)), np.zeros((0, 2, 2)), 2)
    assert_array_equal(distance, [INF, INF])
    assert nearest.shape == (2, 2)
    assert np.isnan(nearest).all()
    assert_array_equal(index, [-1, -1])
    shapes = [part.shape for part in to_segments(np.zeros((0, 2)), np.ones((3, 2, 2)), 2)]
    assert shapes == [(0,), (0, 2), (0,)]


def test_the_first_of_equals_is_named():
    segment = np.array([[1.0, 0], [1, 1]])
    segments = np.stack([segment + 1, segment, segment[::-1], segment])
    assert_array_equal(to_segments(np.zeros((3, 2)), segments, 2)[2], [1, 1, 1])


@pytest.mark.parametrize(("p", "w"), [(1, [0, -0.25]), (2, [0.12, -0.16]), (INF, [1 / 7, -1 / 7])])
def test_projections_by_hand(p, w):
    assert_allclose(projections(np.array([3.0, -4.0]), p), w, rtol=1e-15)
    assert_array_equal(projections(np.zeros((1, 2)), p), [[0, 0]])


@pytest.mark.parametrize("p", [1, 2, INF])
def test_many_points_are_compared_with_few_segments(p, monkeypatch):
    # Every point has its own short segment, so nearly all pairs are left out.
    rng = np.random.default_rng(0)
    places = np.array(list(itertools.product(range(40), range(50))), dtype=float)
    points = places + rng.uniform(-0.1, 0.1, places.shape)
    segments = places[:, None] + rng.uniform(-0.1, 0.1, (len(places), 2, 2))
    pairs = []
    lengths = polygons._lengths
    monkeypatch.setattr(
        polygons, "_lengths", lambda gaps, p: pairs.append(gaps[0].size) or lengths(gaps, p)
    )
    assert_array_equal(to_segments(points, segments, p)[2], np.arange(len(points)))
    assert sum(pairs) < 0.15 * len(points) ** 2
    assert max(pairs) <= polygons.BLOCK


def test_many_points_and_segments_in_one_place_are_taken_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    pairs = []
    lengths = polygons._lengths
    monkeypatch.setattr(
        polygons, "_lengths", lambda gaps, p: pairs.append(gaps[0].size) or lengths(gaps, p)
    )
    points = np.append(rng.uniform(0, 1, (1000, 2)), [[1e6, 1e6]], axis=0)
    to_segments(points, rng.uniform(0, 1, (1000, 2, 2)), 2)
    assert sum(pairs) > 1000**2
    assert max(pairs) <= polygons.BLOCK


@pytest.mark.parametrize("p", [1, 2, INF])
def test_distance_to_polygons_by_hand(p):
    starts, vertices = joined(SQUARE, moved(SQUARE, 4, 5), TRIANGLE, moved(SQUARE, -1, -9))
    distance = to_polygons(np.array([1.0, 1.0]), starts, vertices, p)
    assert_allclose(distance, [0, {1: 7, 2: 5, INF: 4}[p], 0, 8], rtol=1e-15)


@pytest.mark.parametrize("p", [1, 2, INF])
def test_a_point_on_the_boundary_is_at_distance_0(p):
    for point in ([0, 0], [2, 0], [2, 1], [1, 2], [0, 0.5], [2, 2]):
        assert to_polygons(np.array(point), *joined(SQUARE, SQUARE), p).tolist() == [0, 0]


def test_polygons_with_one_or_two_vertices_are_points_and_segments():
    starts, vertices = joined(SQUARE[:1], SQUARE[:2], SQUARE)
    assert_array_equal(to_polygons(np.array([1.0, -3.0]), starts, vertices, 1), [4, 3, 3])
    assert_array_equal(areas(starts, vertices), [0, 0, 4])
    assert_array_equal(centroids(starts, vertices), [[0, 0], [1, 0], [1, 1]])
    assert_array_equal(inradii(starts, vertices)[1], [0, 0, 1])


def test_an_edge_of_a_rounding_error_does_not_cut_the_polygon_in_two():
    # The vertex (2, 2) is there twice, an ulp apart, and the edge between leads backwards.
    step = np.spacing(2.0)
    vertices = np.array([[0.0, 0], [2, 0], [2, 2 - step], [2 - step, 2 - 2 * step], [0, 2]])
    starts = np.array([0, 5])
    assert to_polygons(np.array([0.25, 1.25]), starts, vertices, 2) == 0
    assert to_polygons(np.array([1.25, 0.25]), starts, vertices, 2) == 0
    centers, radii = inradii(starts, vertices)
    assert_allclose(radii, 1, rtol=1e-15)
    assert_allclose(centers, [[1, 1]], rtol=1e-15)
    assert_allclose(centroids(starts, vertices), [[1, 1]], rtol=1e-15)
    assert_allclose(areas(starts, vertices), 4, rtol=1e-15)


def test_no_polygons():
    none = np.array([0]), np.zeros((0, 2))
    assert to_polygons(np.zeros(2), *none, 2).shape == (0,)
    assert areas(*none).shape == (0,)
    assert centroids(*none).shape == (0, 2)
    assert [part.shape for part in inradii(*none)] == [(0, 2), (0,)]


def test_areas_and_centers_by_hand():
    starts, vertices = joined(SQUARE, TRIANGLE, TRIANGLE - 1e3)
    assert_array_equal(areas(starts, vertices), [4, 6, 6])
    expected = [[1, 1], [4 / 3, 1], [4 / 3 - 1e3, 1 - 1e3]]
    assert_allclose(centroids(starts, vertices), expected, rtol=1e-15)


def test_areas_of_fractions_are_exact():
    vertices = fractions([[0.1, 0.2], [1 / 3, 0.1], [0.7, 0.9]])
    (x0, y0), (x1, y1), (x2, y2) = vertices
    exact = ((x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)) / 2
    assert areas(np.array([0, 3]), vertices).tolist() == [exact]


def test_the_area_of_a_sliver_far_from_the_origin():
    width = 2.0**-40
    vertices = np.array([[1000.0, 1000], [1001, 1001], [1001 - width, 1001], [1000 - width, 1000]])
    assert_array_equal(areas(np.array([0, 4]), vertices), [width])


def test_the_centroid_of_a_sliver_whose_triangles_are_spoiled():
    # By a rounding error it is not convex: the triangles' areas are -4 and 4.75 times 2^-61.
    step = 2.0**-60
    vertices = np.array([[0, 0], [4, 0], [3, -step], [1, 1.25 * step]])
    center = centroids(np.array([0, 4]), vertices)
    assert_allclose(center, [[4 / 3, 0]], atol=1e-15)


def test_incircles_by_hand():
    centers, radii = inradii(*joined(TRIANGLE, SQUARE + 7))
    assert_allclose(centers, [[1, 1], [8, 8]], rtol=1e-15)
    assert_allclose(radii, [1, 1], rtol=1e-15)


@pytest.mark.parametrize("m", [3, 4, 5, 12, 17, 100, 1001])
def test_incircles_of_regular_polygons(m):
    centers, radii = inradii(*joined(moved(regular(m, 3, turn=0.1), 5, -2)))
    assert_allclose(radii, 3 * np.cos(np.pi / m), rtol=1e-14)
    assert_allclose(centers, [[5, -2]], atol=1e-12)


def test_the_circle_in_a_rectangle_touches_both_long_sides():
    centers, radii = inradii(*joined(SQUARE * [8, 0.5], (SQUARE * [8, 0.5]) @ [[0, 1], [-1, 0]]))
    assert_array_equal(radii, [0.5, 0.5])
    assert centers[0, 1] == 0.5
    assert centers[1, 0] == -0.5


@pytest.mark.parametrize("width", [1e-3, 1e-9, 1e-15, 1e-100, 1e-300, 0])
@pytest.mark.parametrize("turn", [0, 0.3])
def test_incircles_of_slivers(width, turn):
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    strip, needle = SQUARE * [0.5, width / 2], np.array([[0, 0], [1, 0], [1, width]])
    starts, vertices = joined(strip @ rotation, needle @ rotation)
    centers, radii = inradii(starts, vertices)
    expected = [width / 2, width / (1 + width + np.hypot(1, width))]
    assert_allclose(radii, expected, rtol=1e-12, atol=1e-16)
    if turn == 0:  # no rounding
        assert radii[0] == width / 2
    for middles in (centers, centroids(starts, vertices)):
        along, across = (middles @ rotation.T).T
        assert ((along >= -1e-15) & (along <= 1 + 1e-15)).all()
        assert_allclose(across, 0, atol=width + 1e-15)
