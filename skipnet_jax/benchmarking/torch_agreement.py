"""Whether the Flax and the PyTorch network are one function.

Compared without dropout, with batch statistics: logits, loss, the gradient of
every layer (kernel and bias, or scale and bias, together: the bias before a
BatchNorm has no gradient but rounding), and the running statistics after a
step, each as the norm of the difference over the norm.
"""
