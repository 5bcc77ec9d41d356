import numpy as np
from numpy.testing import assert_array_equal

from refmmr import Conv2d, Flatten, Linear, Network, linear_region
from refmmr.reference import affine

# f_1 = (x_1 - x_2, 2 x_1 - 1), f_2 = g_1 + g_2 - 3, logits (g_3, 1 - g_3)
NET = Network(
    [Linear([[1, -1], [2, 0]], [0, -1]), Linear([[1, 1]], [-3]), Linear([[1], [-1]], [0, 1])], 2
)


def test_region_by_hand():
    region = linear_region(NET, [1, -2])  # f_1 = (3, 1), f_2 = 1
    assert_array_equal(region.pattern, [True, True, True])
    assert_array_equal(region.V[0], [[1, -1], [2, 0]])
    assert_array_equal(region.V[1], [[3, -1]])
    assert_array_equal(region.V[2], [[3, -1], [-3, 1]])
    assert_array_equal(region.a[0], [0, -1])
    assert_array_equal(region.a[1], [-4])
    assert_array_equal(region.a[2], [-4, 5])
    A, b = region.halfspaces
    assert_array_equal(A, [[-1, 1], [-2, 0], [-3, 1]])
    assert_array_equal(b, [0, -1, -4])
    assert_array_equal(region.logits(np.array([[1.0, -2], [0, 0]])), [[1, 0], [-4, 5]])


def test_halfspaces_of_inactive_units():
    region = linear_region(NET, [0, -1])  # f_1 = (1, -1), f_2 = -2
    assert_array_equal(region.pattern, [True, False, False])
    A, b = region.halfspaces
    assert_array_equal(A, [[-1, 1], [2, 0], [1, -1]])
    assert_array_equal(b, [0, 1, 3])
    assert_array_equal(region.V[2], np.zeros((2, 2)))
    assert_array_equal(region.a[2], [0, 1])


def test_hyperplanes_belong_to_the_region_and_tolerance_is_a_distance():
    region = linear_region(Network([Linear([[3, 4]], [0]), Linear([[1]], [0])], 2), [1, 0])
    points = np.array([[1.0, 0], [4, -3], [-0.6, -0.8], [-3, -4]])  # 0, 0, 1 and 5 outside
    assert_array_equal(region.contains(points), [True, True, False, False])
    assert_array_equal(region.contains(points, tolerance=1.5), [True, True, True, False])
    assert_array_equal(region.contains(points, tolerance=5.5), [True, True, True, True])


def test_of_no_points_none_lie_in_the_region():
    region = linear_region(NET, [1, -2])
    assert region.contains(np.zeros((0, 2))).shape == (0,)
    assert region.logits(np.zeros((0, 2))).shape == (0, 2)


def test_no_hidden_layer_is_one_region():
    region = linear_region(Network([Linear([[3, 4]], [1])], 2), [1, 1])
    assert region.pattern.shape == (0,)
    assert region.pattern.dtype == bool
    A, b = region.halfspaces
    assert A.shape == (0, 2)
    assert b.shape == (0,)
    assert region.contains(np.array([[1e9, -1e9]])).all()


def test_border_units_of_a_padded_convolution_have_truncated_rows():
    W = np.arange(1.0, 10).reshape(1, 1, 3, 3)
    net = Network(
        [Conv2d(W, [0], padding="same"), Flatten(), Linear(np.ones((2, 9)), [0, 0])], (1, 3, 3)
    )
    V = linear_region(net, np.ones((1, 3, 3))).V[0].reshape(3, 3, 3, 3)  # unit, then pixel
    assert_array_equal(V[1, 1], W[0, 0])
    assert_array_equal(V[0, 0], [[5, 6, 0], [8, 9, 0], [0, 0, 0]])
    assert_array_equal(V[0, 1], [[4, 5, 6], [7, 8, 9], [0, 0, 0]])
    assert_array_equal(V[2, 2], [[0, 0, 0], [0, 1, 2], [0, 4, 5]])


def test_probes_of_the_first_layer_are_shared():
    X = np.array([[1.0, -2], [0, -1], [5, 5]])
    cache = NET.forward(X)
    outputs = affine.probe(NET, cache.masks, affine.basis(NET, X.dtype)).outputs
    assert [output.shape for output in outputs] == [(1, 2, 2), (3, 2, 1), (3, 2, 2)]
    for i, x in enumerate(X):
        assert_array_equal(outputs[-1][i].T, linear_region(NET, x).V[-1])


def test_float32_stays_float32():
    region = linear_region(NET.astype(np.float32), np.array([1, -2], dtype=np.float32))
    arrays = [*region.V, *region.a, *region.halfspaces]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


def test_chunks_cover_every_sample_once(monkeypatch):
    # 2 probes times 2 units times 8 bytes a sample
    for limit, sizes in [(2**20, [7]), (3 * 32, [3, 3, 1]), (95, [2, 2, 2, 1]), (1, [1] * 7)]:
        monkeypatch.setattr(affine, "CHUNK_BYTES", limit)
        parts = [np.arange(7)[rows] for rows in affine.chunks(NET, 7)]
        assert [len(part) for part in parts] == sizes
        assert_array_equal(np.concatenate(parts), np.arange(7))
