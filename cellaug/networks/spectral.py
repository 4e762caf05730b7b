"""Layers whose kernel is divided by its largest singular value (Miyato et al. 2018).

Keras's own `SpectralNormalization` overwrites the kernel in the middle of a call. Whether the
gradient then passes through the division differs between backends; here it always does, and the
kernel that an optimizer moves is left as it is.
"""

from typing import Any

import keras
from keras import KerasTensor, initializers, layers, ops


class _Spectral:
    """One step of the power method for each call in training, as in the paper's Algorithm 1."""

    def add_weight(self, *shape: Any, **options: Any) -> keras.Variable:
        """Make weights that stay in float32 under mixed precision, until they are normalised."""
        return super().add_weight(*shape, **options | {"autocast": False})

    def build(self, input_shape: tuple) -> None:
        """Make the kernel, and the estimate of its first right singular vector, (outputs,)."""
        super().build(input_shape)
        self.direction = self.add_weight(
            (self.kernel.shape[-1],),
            initializers.RandomNormal(stddev=1.0),
            trainable=False,
            name="direction",
        )

    def save_own_variables(self, store: Any) -> None:
        """Keras's layers save kernel and bias by name; the estimate goes with them."""
        super().save_own_variables(store)
        store["direction"] = self.direction.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Read what `save_own_variables` wrote."""
        super().load_own_variables(store)
        self.direction.assign(store["direction"])

    def _normalised(self, training: bool) -> KerasTensor:
        """W / σ with σ = vᵀWu, computed in float32; u and v count as constants."""
        kernel = ops.convert_to_tensor(self.kernel)
        matrix = ops.reshape(kernel, (-1, kernel.shape[-1]))
        fixed = ops.stop_gradient(matrix)
        left = _unit(ops.matmul(fixed, self.direction))
        right = _unit(ops.matmul(left, fixed))
        if training:
            self.direction.assign(right)
        sigma = ops.matmul(left, ops.matmul(matrix, right))
        return ops.cast(kernel / ops.maximum(sigma, 1e-12), self.compute_dtype)

    def _finished(self, outputs: KerasTensor) -> KerasTensor:
        """Bias and activation, on the last axis."""
        if self.use_bias:
            outputs = outputs + ops.cast(self.bias, outputs.dtype)
        return outputs if self.activation is None else self.activation(outputs)


def _unit(vector: KerasTensor) -> KerasTensor:
    return vector / ops.maximum(ops.norm(vector), 1e-12)


@keras.saving.register_keras_serializable("cellaug")
class SpectralConv2D(_Spectral, layers.Conv2D):
    """`keras.layers.Conv2D`, channels last, with its kernel over its largest singular value."""

    def call(self, inputs: KerasTensor, training: bool = False) -> KerasTensor:
        """(N, H, W, C) to (N, H', W', filters)."""
        return self._finished(self.convolution_op(inputs, self._normalised(training)))


@keras.saving.register_keras_serializable("cellaug")
class SpectralDense(_Spectral, layers.Dense):
    """`keras.layers.Dense` with its kernel over its largest singular value."""

    def call(self, inputs: KerasTensor, training: bool = False) -> KerasTensor:
        """(N, d) to (N, units)."""
        return self._finished(ops.matmul(inputs, self._normalised(training)))
