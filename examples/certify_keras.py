"""Certified radii of a Keras model, exported by ``model.export("model.onnx", format="onnx")``.

``python certify_keras.py MODEL.onnx [DATA]``; DATA is what the model was trained on.
"""

import sys

import refmmr as rm

path = sys.argv[1]
name = sys.argv[2] if len(sys.argv) > 2 else "mnist"

# Keras has the channels last, refmmr first: X.transpose(0, 3, 1, 2) turns colour images.
data = rm.datasets.load(name, images=True)
X, y = data.X_test[:20], data.y_test[:20]
net = rm.load(path)
print(f"accuracy {(net.predict(X) == y).mean():.0%}")

# With None for the labels a radius is about the class that the model predicts.
found = rm.certify(net, X, None, p="inf", method="crown")
for i, radius in enumerate(found.lower):
    print(f"image {i}: class {net.predict(X[i : i + 1])[0]} within l_inf {radius:.4f}")
