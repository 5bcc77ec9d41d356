"""Polygons and segments: against linear programs, fractions, samples, and the laws they obey."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import linprog

import refmmr as rm
from refmmr.reference.hyperplanes import norm
from refmmr.reference.incircles import inradii
from refmmr.reference.polygons import areas, centroids, nearest_points, to_polygons, to_segments
from refmmr.reference.volumes import area
from refmmr.regions import polytopes
from refmmr.testing import fractions, norms

GENERATORS = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@st.composite
def scenes(draw, dyadic=False):
    """Points and segments, some of which are points, some twins, some along an axis."""
    rng = draw(GENERATORS)
    q, m = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    length = draw(st.sampled_from([0.25, 4.0]))
    points, starts = rng.uniform(-4, 4, (q, 2)), rng.uniform(-4, 4, (m, 2))
    edges = rng.uniform(-length, length, (m, 2))
    edges[rng.random((m, 2)) < 0.2] = 0
    if dyadic:
        points, starts, edges = (np.round(4 * array) / 4 for array in (points, starts, edges))
    segments = np.stack([starts, starts + edges], axis=1)
    return points, segments[rng.integers(m, size=m)]


@st.composite
def plane_polygons(draw, most=20):
    """Convex polygons: hulls of points on ellipses, counter-clockwise."""
    rng = draw(GENERATORS)
    shapes = []
    for m in draw(st.lists(st.integers(3, most), min_size=1, max_size=5)):
        angles = np.sort(rng.uniform(0, 2 * np.pi, m))
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        stretch = np.diag(10.0 ** rng.uniform(-2, 0, 2)) @ np.linalg.qr(rng.normal(size=(2, 2)))[0]
        stretch[0] *= np.sign(np.linalg.det(stretch))
        shapes.append(circle @ stretch + rng.uniform(-2, 2, 2))
    return shapes


@st.composite
def split_squares(draw):
    """The pieces of a square that is split along lines, many of which nearly coincide."""
    rng = draw(GENERATORS)
    line, lines = rng.normal(size=3), []
    for _ in range(draw(st.integers(1, 7))):
        other = rng.normal(size=3)
        lines.append(other if rng.random() < 0.4 else line + 10.0 ** rng.uniform(-17, -3) * other)
        line = lines[-1]
    w = np.array(lines)
    net = rm.Network([rm.Linear(w[:, :2], w[:, 2]), rm.Linear(np.ones((1, len(w))), [0])], 2)
    return list(rm.enumerate_regions(net, rm.Box([-1, -1], [1, 1])).vertices)


def joined(shapes):
    return np.cumsum([0, *(len(vertices) for vertices in shapes)]), np.concatenate(shapes)


def half_planes(vertices):
    """``A z <= b`` of a convex polygon."""
    edges = np.roll(vertices, -1, axis=0) - vertices
    A = np.stack([edges[:, 1], -edges[:, 0]], axis=1)
    return A, (A * vertices).sum(axis=1)


def program_inradius(vertices):
    """The radius of the incircle by HiGHS, relative to the size of the polygon, and that size."""
    local = vertices - vertices.mean(axis=0)
    size = np.abs(local).max()
    A, _ = half_planes(local / size)
    lengths = np.hypot(*A.T)
    A = A[lengths > 0] / lengths[lengths > 0, None]
    b = (A @ local.T / size).max(axis=1)
    tolerances = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    rows = np.column_stack([A, np.ones(len(A))])
    result = linprog([0, 0, -1], rows, b, bounds=[(-2, 2), (-2, 2), (0, None)], options=tolerances)
    assert result.status == 0
    return -result.fun, size


@given(scenes(), norms())
def test_the_nearest_point_is_on_its_segment_and_no_other_is_nearer(scene, p):
    points, segments = scene
    distance, nearest, index = to_segments(points, segments, p)
    assert_array_equal(distance, norm(points - nearest, p))
    starts, ends = segments[index].swapaxes(0, 1)
    lengths = norm(ends - starts, 2)
    assert_allclose(norm(nearest - starts, 2) + norm(ends - nearest, 2), lengths, atol=1e-14)
    t = np.linspace(0, 1, 101)[:, None, None]
    samples = (segments[:, 0] + t * (segments[:, 1] - segments[:, 0])).reshape(-1, 2)
    to_samples = norm(points[:, None] - samples, p)
    assert (distance[:, None] <= to_samples + 1e-14).all()
    # A sample is at most 1 / 200 of a segment from any point of it.
    largest = norm(segments[:, 1] - segments[:, 0], p).max()
    assert (distance >= to_samples.min(axis=1) - largest / 200 - 1e-14).all()


@given(scenes(dyadic=True), norms())
def test_distances_to_segments_are_those_of_fractions(scene, p):
    points, segments = scene
    distance, _, index = to_segments(points, segments, p)
    exact = np.array([[exact_distance(x, *ab, p) for ab in segments] for x in points])
    smallest = exact.min(axis=1).astype(float)
    assert_allclose(distance, np.sqrt(smallest) if p == 2 else smallest, rtol=4e-15, atol=1e-15)
    chosen = exact[np.arange(len(points)), index].astype(float)
    assert_allclose(chosen, smallest, rtol=1e-14, atol=1e-30)


def exact_distance(x, a, b, p):
    """Distance of a point to a segment as a fraction (squared in l_2), by trying all kinks."""
    (rx, ry), (ex, ey) = fractions(a - x), fractions(b - a)
    # The distance is |r + t e|: kinks where a coordinate, or a sum or difference of them, is 0.
    if p == 2:
        kinks = [(rx * ex + ry * ey, ex * ex + ey * ey)]
    else:
        kinks = [(rx, ex), (ry, ey), (rx + ry, ex + ey), (rx - ry, ex - ey)]
    places = [0, 1, *(-r / e for r, e in kinks if e and 0 <= -r / e <= 1)]
    size = {1: lambda u, v: abs(u) + abs(v), 2: lambda u, v: u * u + v * v}.get(
        p, lambda u, v: max(abs(u), abs(v))
    )
    return min(size(rx + t * ex, ry + t * ey) for t in places)


@given(GENERATORS, norms(), st.sampled_from([0.01, 0.3, 3]), st.booleans())
def test_leaving_out_far_segments_changes_nothing(rng, p, length, clustered):
    points, starts = rng.normal(size=(150, 2)), rng.normal(size=(200, 2))
    if clustered:
        points, starts = points**5, starts**5
    segments = starts[:, None] + length * rng.normal(size=(200, 2, 2))
    distance, nearest, index = to_segments(points, segments, p)
    every = nearest_points(points[:, None], segments[:, 0], segments[:, 1], p)
    gaps = norm(points[:, None] - every, p)
    rows = np.arange(len(points))
    assert_array_equal(nearest, every[rows, index])
    assert_array_equal(distance, gaps[rows, index])
    assert_allclose(distance, gaps.min(axis=1), rtol=1e-13, atol=1e-13)


@given(scenes(dyadic=True), norms(), GENERATORS)
def test_symmetries_of_distances_to_segments(scene, p, rng):
    points, segments = scene
    distance = to_segments(points, segments, p)[0]

    def check(points, segments, factor=1.0):
        found = to_segments(points, segments, p)[0]
        assert_allclose(found, factor * distance, rtol=1e-14, atol=1e-14 * factor)

    shift = rng.integers(-64, 65, 2) / 4
    check(points + shift, segments + shift)
    check(points * 2.0**-30, segments * 2.0**-30, 2.0**-30)
    check(points, segments[:, ::-1])
    check(points, rng.permutation(segments))
    check(points[:, ::-1], segments[..., ::-1])
    check(points * [1, -1], segments * [1, -1])


@given(scenes(), norms())
def test_distance_to_one_segment_is_convex_and_lipschitz(scene, p):
    points, segments = scene
    a, b = points, points[::-1]
    da, db = (to_segments(x, segments[:1], p)[0] for x in (a, b))
    middle = to_segments((a + b) / 2, segments[:1], p)[0]
    assert (middle <= (da + db) / 2 + 1e-14).all()
    many_a, many_b = (to_segments(x, segments, p)[0] for x in (a, b))
    assert (np.abs(many_a - many_b) <= norm(a - b, p) + 1e-14).all()


@given(plane_polygons(most=9), GENERATORS, norms())
def test_distances_to_polygons_are_those_of_programs(shapes, rng, p):
    starts, vertices = joined(shapes)
    point = rng.uniform(-4, 4, 2)
    distance = to_polygons(point, starts, vertices, p)
    expected = [polytopes.distance(*half_planes(shape), point, p) for shape in shapes]
    assert_allclose(distance, expected, rtol=1e-7, atol=1e-9)


@given(plane_polygons(), GENERATORS, norms())
def test_the_inside_of_a_polygon_is_left_of_all_edges(shapes, rng, p):
    starts, vertices = joined(shapes)
    points = np.concatenate([rng.dirichlet(np.full(len(s), 0.3), 3) @ s for s in shapes])
    points = np.concatenate([points, points + 0.1 * rng.normal(size=points.shape)])
    for point in points:
        distance = to_polygons(point, starts, vertices, p)
        left = np.array([(b - A @ point).min() for A, b in map(half_planes, shapes)])
        assert (distance[left > 1e-13] == 0).all()
        assert (distance[left < -1e-13] > 0).all()
        assert (distance[np.abs(left) <= 1e-13] < 1e-6).all()


@given(plane_polygons(), GENERATORS, norms())
def test_distance_to_a_polygon_is_convex(shapes, rng, p):
    starts, vertices = joined(shapes)
    a, b = rng.uniform(-4, 4, (2, 2))
    ends = to_polygons(a, starts, vertices, p) + to_polygons(b, starts, vertices, p)
    assert (to_polygons((a + b) / 2, starts, vertices, p) <= ends / 2 + 1e-14).all()


@given(plane_polygons() | split_squares())
def test_incircles_are_those_of_programs(shapes):
    centers, radii = inradii(*joined(shapes))
    for vertices, center, radius in zip(shapes, centers, radii, strict=True):
        expected, size = program_inradius(vertices)
        assert radius / size == pytest.approx(expected, abs=2e-9)
        A, b = half_planes(vertices - center)
        long = np.hypot(*A.T) > 1e-6 * size
        # The center is a float: off by an ulp of its coordinates, however small the polygon.
        ulp = np.spacing(np.abs(vertices).max())
        assert (b[long] >= np.hypot(*A[long].T) * (radius - 1e-9 * size - 2 * ulp)).all()
        assert_in_box(center, vertices)


def assert_in_box(point, vertices):
    assert (point >= vertices.min(axis=0) - 1e-15).all()
    assert (point <= vertices.max(axis=0) + 1e-15).all()


@given(split_squares())
def test_radii_lie_between_bounds_from_area_and_perimeter(shapes):
    # Triangles from the center to the edges are at least r high: r P <= 2 A.  And no point is
    # farther than r from all edges, so strips of width r along them cover the polygon: A <= r P.
    starts, vertices = joined(shapes)
    radii, surface = inradii(starts, vertices)[1], areas(starts, vertices)
    perimeters = np.array([norm(np.roll(s, -1, axis=0) - s, 2).sum() for s in shapes])
    assert surface.sum() == pytest.approx(4, rel=1e-13)
    assert (radii >= surface / perimeters - 1e-15).all()
    assert (radii <= 2 * surface / perimeters + 1e-15).all()


@given(split_squares())
def test_centroids_lie_in_their_polygons(shapes):
    starts, vertices = joined(shapes)
    for shape, center in zip(shapes, centroids(starts, vertices), strict=True):
        alone = to_polygons(center, np.array([0, len(shape)]), shape, np.inf)
        assert alone[0] <= 1e-15
        assert_in_box(center, shape)


@given(plane_polygons(), GENERATORS)
def test_symmetries_of_incircles(shapes, rng):
    radii = inradii(*joined(shapes))[1]

    def check(image, factor=1.0):
        found = inradii(*joined([image(shape) for shape in shapes]))[1]
        assert_allclose(found, factor * radii, rtol=1e-9, atol=1e-13 * factor)

    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    check(lambda s: s @ rotation)
    check(lambda s: s + rng.normal(size=2))
    check(lambda s: s * 2.0**-100, 2.0**-100)
    check(lambda s: np.roll(s, 1, axis=0))
    check(lambda s: (s * [-1, 1])[::-1])
    # Vertices that are there twice, or on an edge, change nothing.
    check(lambda s: np.repeat(s, 2, axis=0))
    check(lambda s: np.stack([s, (s + np.roll(s, -1, axis=0)) / 2], axis=1).reshape(-1, 2))


@given(plane_polygons(), GENERATORS)
def test_affine_images_of_fractions(shapes, rng):
    shapes = [fractions(np.round(shape * 64) / 64) for shape in shapes]
    starts, vertices = joined(shapes)
    A, b = fractions(rng.integers(-8, 9, (2, 2)) / 4), fractions(rng.integers(-8, 9, 2) / 4)
    determinant = A[0, 0] * A[1, 1] - A[0, 1] * A[1, 0]
    surface = areas(starts, vertices)
    assert areas(starts, vertices @ A + b).tolist() == (surface * determinant).tolist()
    assert surface.tolist() == [area(shape) for shape in shapes]
    # On these numbers float64 is exact, too.
    assert areas(starts, vertices.astype(float)).tolist() == surface.astype(float).tolist()


@given(plane_polygons(), GENERATORS)
def test_centroids_of_affine_images(shapes, rng):
    starts, vertices = joined(shapes)
    A, b = rng.normal(size=(2, 2)), rng.normal(size=2)
    A[0] *= np.sign(np.linalg.det(A))
    expected = centroids(starts, vertices) @ A + b
    assert_allclose(centroids(starts, vertices @ A + b), expected, rtol=1e-9, atol=1e-9)


@given(plane_polygons(most=8))
def test_centroids_are_means_of_two_halves(shapes):
    # Cut along a diagonal: center and area add up.
    for shape in shapes:
        halves = [shape[:3], shape[[0, *range(2, len(shape))]]] if len(shape) > 3 else [shape]
        weights = areas(*joined(halves))
        mean = weights @ centroids(*joined(halves)) / weights.sum()
        assert_allclose(centroids(*joined([shape]))[0], mean, rtol=1e-9, atol=1e-9)
