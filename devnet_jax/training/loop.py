"""The training loop: for each epoch draw batches, run steps, log metrics and save the state."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from devnet_jax.checkpoints.checkpoints import Checkpoints
from devnet_jax.config import Config
from devnet_jax.data.prefetch import prefetch
from devnet_jax.data.sampler import balanced_batch
from devnet_jax.data.store import ImageStore
from devnet_jax.distributed.cluster import report_progress, stop_agreement
from devnet_jax.distributed.sharding import (
    abstract_replicated,
    local_batch_slice,
    n_devices,
    replicated,
)
from devnet_jax.distributed.stopping import Stopped
from devnet_jax.errors import UserError
from devnet_jax.models.bags import unrolls_training
from devnet_jax.models.build import abstract_variables
from devnet_jax.training.log import TrainingLog
from devnet_jax.training.optimizer import make_schedule
from devnet_jax.training.step import TrainState, initial_state, make_train_call


def require_divisible_batch(config: Config) -> None:
    """Raises `UserError` if the batch size is not a multiple of the number of devices."""
    if config.train.batch_size % n_devices():
        raise UserError(
            f"config.train.batch_size = {config.train.batch_size}: must be a multiple of the "
            f"{n_devices()} devices"
        )


def fit(
    config: Config,
    store: ImageStore,
    n_normal: int,
    state: TrainState,
    checkpoints: Checkpoints,
    log: TrainingLog,
) -> TrainState:
    """Trains from an initial or restored state to the last epoch.

    Args:
      config: all settings.
      store: normal training images, followed by labelled anomalies.
      n_normal: number of normal training images.
      state: initial state (`initial_state`, `restore_state`).
      checkpoints: destination of saved states.
      log: log of calls and epochs.

    Returns:
      The state after the last step.

    Raises:
      Stopped: if the run was asked to stop; its state is saved.
      UserError: if the batch size is not a multiple of the devices; if the loss, the gradient or a
        parameter is not finite (the last good checkpoint stays); or if a streamed image cannot be
        decoded.
    """
    require_divisible_batch(config)
    # Replicated here, because another sharding would make the second call compile again.
    state = jax.device_put(state, replicated())
    train_call = make_train_call(config, store, scan=not unrolls_training())

    done = int(state.step)
    log.resume(done)
    # A thread prepares the inputs of the next call while the devices run this one.
    inputs = prefetch(call_inputs(config, store, n_normal, done))
    with contextlib.closing(inputs), stop_agreement() as stops_after:
        for epoch in range(done // config.train.steps_per_epoch, config.train.epochs):
            last_step = (epoch + 1) * config.train.steps_per_epoch
            stopped = False
            while done < last_step and not stopped:
                started = time.perf_counter()
                batches, labels = next(inputs)
                state, metrics = train_call(state, store.resident, batches, labels)
                values = {name: np.asarray(value) for name, value in metrics.items()}
                _require_finite(values, done, checkpoints)
                done += len(labels)
                log.log_call(done, values, time.perf_counter() - started)
                report_progress()
                stopped = stops_after(done)
            means = log.epoch_means() if done == last_step else None
            if done == last_step:
                log.log_epoch(epoch + 1, done, float(make_schedule(config)(last_step - 1)))
            else:
                log.save_interrupted_epoch(done)
            last = epoch + 1 == config.train.epochs
            if stopped or last or (epoch + 1) % config.train.checkpoint_epochs == 0:
                save_state(checkpoints, state, config, means)
            if stopped:
                checkpoints.wait()
                raise Stopped(
                    f"told to stop: step {done} is saved; run the same command again to resume"
                )
    return state


def call_inputs(
    config: Config, store: ImageStore, n_normal: int, done: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the inputs of each call after `done` steps, to the end of the last epoch.

    Yields:
      `store.call_input` of the calls' indices, and labels float32 [steps, B], B the batch size of
      this process.
    """
    per_call = steps_per_call(config, store)
    per_epoch = config.train.steps_per_epoch
    while done < config.train.epochs * per_epoch:
        # A call does not go beyond its epoch.
        steps = range(done, min(done + per_call, (done // per_epoch + 1) * per_epoch))
        indices = batch_indices(config, steps, n_normal, len(store))
        yield store.call_input(indices), (indices >= n_normal).astype(np.float32)
        done = steps.stop


def steps_per_call(config: Config, store: ImageStore) -> int:
    """Returns the number of steps in one call.

    The default is 1 on a CPU. On accelerators it is an epoch, or fewer if the store limits the
    pixels that a call may carry.
    """
    if config.train.steps_per_call:
        return config.train.steps_per_call
    if unrolls_training():
        return 1
    return min(config.train.steps_per_epoch, store.max_steps_per_call(config.train.batch_size))


def batch_indices(config: Config, steps: range, n_normal: int, n_images: int) -> np.ndarray:
    """Returns the indices of these steps' batches: int32 [steps, B], this process's part."""
    batches = [
        balanced_batch(
            step,
            n_normal=n_normal,
            n_anomaly=n_images - n_normal,
            batch_size=config.train.batch_size,
            seed=config.seed,
        )
        for step in steps
    ]
    return np.stack(batches)[:, local_batch_slice(config.train.batch_size)]


def save_state(
    checkpoints: Checkpoints,
    state: TrainState,
    config: Config,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Saves the state as the checkpoint of its step; raises `UserError` if it is not finite.

    Args:
      checkpoints: destination.
      state: state to save.
      config: all settings, which are saved with it.
      metrics: means over the epoch, from which `train.keep_best` chooses.
    """
    step = int(state.step)
    if not _all_finite(state.variables):
        raise _not_finite(step, "a parameter", checkpoints)
    optimizer = {"state": state.optimizer_state, "step": state.step}
    checkpoints.save(step, state.variables, optimizer, settings=config.to_dict(), metrics=metrics)


def _all_finite(tree: Any) -> bool:
    # On the host, which needs the state anyway to save it; nothing is compiled.
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(tree)))


def restore_state(checkpoints: Checkpoints, config: Config) -> TrainState:
    """Restores the newest checkpoint's state, replicated over the devices.

    Raises:
      UserError: if there is no checkpoint, it cannot be read, or it has other settings.
    """
    state = jax.eval_shape(functools.partial(initial_state, config), abstract_variables(config))
    abstract = abstract_replicated(state)
    restored = checkpoints.restore(
        config,
        variables=abstract.variables,
        optimizer={"state": abstract.optimizer_state, "step": abstract.step},
    )
    optimizer = restored["optimizer"]
    return TrainState(optimizer["step"], restored["variables"], optimizer["state"])


def _require_finite(
    metrics: dict[str, np.ndarray], first_step: int, checkpoints: Checkpoints
) -> None:
    for name, values in metrics.items():
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            what = f"the {name.replace('_', ' ')} ({values[bad[0]]})"
            raise _not_finite(first_step + int(bad[0]) + 1, what, checkpoints)


def _not_finite(step: int, what: str, checkpoints: Checkpoints) -> UserError:
    last_good = checkpoints.latest_step()
    saved = "no checkpoint was saved yet" if last_good is None else f"step {last_good} is saved"
    return UserError(
        f"step {step}: {what} is not finite; training stopped, {saved}; "
        "a smaller config.optimizer.learning_rate may help"
    )
