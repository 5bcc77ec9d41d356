"""Networks from and to other libraries: ONNX, PyTorch, safetensors, MATLAB, scikit-learn.

Every reader adds the operations it finds to an `Assembly`, which builds the network.
"""
