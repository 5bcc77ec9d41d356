"""Several threads certify at the same time, each with solvers of its own."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import random_biases

import refmmr as rm


@pytest.mark.parametrize("method", ["lp", "mip", "search"])
def test_threads_certify_what_one_does(method):
    net = random_biases(3, 8, 8, 2)
    X = np.random.default_rng(0).uniform(0, 1, (8, 3))
    y = net.predict(X)

    def one(i):
        found = rm.certify(net, X[i : i + 1], y[i : i + 1], p=np.inf, method=method)
        return found.lower[0], found.upper[0], found.adversarial.tobytes()

    alone = [one(i) for i in range(len(X))]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(len(X)))) == alone
