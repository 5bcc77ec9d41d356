"""Networks from and for other libraries: ONNX, PyTorch, safetensors, MATLAB, scikit-learn.

Every reader lists the operations it finds to an `Assembly`, which makes a network of them.
"""
