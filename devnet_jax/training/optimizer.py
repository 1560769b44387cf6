"""The paper's optimiser: clipped gradients, L2 weight decay, Adam, stepwise learning rate."""

from __future__ import annotations

import optax

from devnet_jax.config import Config


def make_optimizer(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """Returns Adam on clipped gradients with L2 weight decay, in PyTorch's order.

    The gradient is clipped by its global norm; then weight_decay × parameter is added for every
    parameter, biases and BatchNorm included; then Adam follows. This is L2 regularisation, not
    AdamW's decoupled decay.

    Args:
      learning_rate: number, or schedule of the step (see `step_decay`).
      weight_decay: factor of the L2 term's gradient; 0 for none.
      clip_norm: largest global norm of the gradient.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.add_decayed_weights(weight_decay),
        optax.adam(learning_rate),
    )


def step_decay(learning_rate: float, decay_rate: float, decay_every_steps: int) -> optax.Schedule:
    """Returns a schedule that multiplies the rate by `decay_rate` every `decay_every_steps`."""
    return optax.exponential_decay(
        learning_rate, transition_steps=decay_every_steps, decay_rate=decay_rate, staircase=True
    )


def make_schedule(config: Config) -> optax.Schedule:
    """Returns the learning rate of the settings as a function of the step."""
    settings = config.optimizer
    return step_decay(
        settings.learning_rate,
        settings.decay_rate,
        settings.decay_epochs * config.train.steps_per_epoch,
    )


def optimizer_from(config: Config) -> optax.GradientTransformation:
    """Returns the optimiser of the settings."""
    settings = config.optimizer
    return make_optimizer(make_schedule(config), settings.weight_decay, settings.clip_norm)
