"""Certified accuracy over the radius, plain training beside MMR, as a figure for a paper.

``python robustness_curve.py [DATA]`` writes ``robustness.pdf``, one column wide.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np

import refmmr as rm

data = rm.datasets.load(sys.argv[1] if len(sys.argv) > 1 else "digits")
X, y = data.X_test[:100], data.y_test[:100]
classes = int(data.y_train.max()) + 1
radii = np.linspace(0.05, 1, 20)

plt.rcParams.update({"font.size": 8, "pdf.fonttype": 42})  # text stays text
figure, ax = plt.subplots(figsize=(3.3, 2.4), layout="constrained")
for scheme, options in {"plain": {}, "mmr": {"lam": 4.0, "gamma": 0.6}}.items():
    start = rm.Network.mlp([data.X_train.shape[1], 64, classes], rng=0)
    net, _ = rm.fit(start, data.X_train, data.y_train, scheme, p=2, epochs=20, **options)
    curve = rm.robustness_curve(net, X, y, p=2, radii=radii, methods=("crown", "attack"))
    (line,) = ax.plot(radii, 100 * curve.certified_accuracy, label=f"{scheme}, certified")
    ax.plot(radii, 100 * curve.attacked_accuracy, ":", color=line.get_color(), label="under attack")
ax.set(xlabel="radius in $l_2$", ylabel="accuracy in %", xlim=(0, 1), ylim=(0, 100))
ax.legend(frameon=False)
figure.savefig("robustness.pdf")
