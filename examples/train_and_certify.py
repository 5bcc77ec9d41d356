"""Train a network with MMR and bound its robust test error: MNIST in l_inf, as in the paper.

``python train_and_certify.py [DATA] [EPOCHS]``; DATA is "mnist" or "digits".
"""

import sys

import refmmr as rm

name = sys.argv[1] if len(sys.argv) > 1 else "mnist"
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 100
eps = 0.1

data = rm.datasets.load(name)
classes = int(data.y_train.max()) + 1
net = rm.Network.mlp([data.X_train.shape[1], 1024, classes], rng=0).astype("float32")
net, history = rm.fit(
    net, data.X_train, data.y_train, "mmr", p="inf", lam=2.0, gamma=eps, epochs=epochs
)
rm.save(net, f"{name}-mmr.npz")

found = rm.robust_error(net, data.X_test[:100], data.y_test[:100], p="inf", eps=eps)
print(found.table())
