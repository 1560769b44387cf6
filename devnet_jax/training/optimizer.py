"""The optimiser of the paper: clipped gradients, L2 weight decay, Adam, a stepwise rate."""

import optax


def make_optimizer(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """Adam on clipped gradients with L2 weight decay, in PyTorch's order.

    The gradient's global norm is clipped first; then weight_decay × parameter is added to the
    gradient of every parameter, biases and BatchNorm included (that is L2 regularisation, not
    AdamW's decoupled decay); then Adam.

    Args:
      learning_rate: a number, or a schedule from the step (see `step_decay`).
      weight_decay: factor of the L2 term's gradient; 0 for none.
      clip_norm: largest global norm of the gradient.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.add_decayed_weights(weight_decay),
        optax.adam(learning_rate),
    )


def step_decay(learning_rate: float, decay_rate: float, decay_every_steps: int) -> optax.Schedule:
    """Schedule: the learning rate, times `decay_rate` after every `decay_every_steps` steps."""
    return optax.exponential_decay(
        learning_rate, transition_steps=decay_every_steps, decay_rate=decay_rate, staircase=True
    )
