"""The training loop: restore, then epoch after epoch: draw batches, run their steps, log, save."""

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
    local_device_slice,
    n_devices,
    replicated,
)
from devnet_jax.distributed.stopping import Stopped
from devnet_jax.errors import UserError
from devnet_jax.models.build import abstract_variables
from devnet_jax.training.log import TrainingLog
from devnet_jax.training.step import TrainState, initial_state, make_schedule, make_train_call


def require_divisible_batch(config: Config) -> None:
    """Raises `UserError` where the batch cannot be shared equally among the devices."""
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
    """Trains from a state, a new one or a restored one, to the last epoch.

    Args:
      config: all settings.
      store: the normal training images, then the labelled anomalies.
      n_normal: how many of them are normal.
      state: where training starts (`initial_state`, `restore_state`).
      checkpoints: where states are saved.
      log: told of every call and every epoch.

    Returns:
      The state after the last step.

    Raises:
      Stopped: the run was told to stop, and the state is saved.
      UserError: the batch does not divide by the devices, or the loss, the gradient or a
        parameter is no longer finite (the last good checkpoint stays), or a streamed image
        cannot be decoded.
    """
    require_divisible_batch(config)
    # Replicated before the first call, or the second, with other shardings, compiles again.
    state = jax.device_put(state, replicated())
    train_call = make_train_call(config, store, scan=not on_cpu())

    done = int(state.step)
    log.resume(done)
    # What a call is given is made while the devices run the one before.
    inputs = prefetch(call_inputs(config, store, n_normal, done))
    with contextlib.closing(inputs) as calls, stop_agreement() as ends_after:
        for epoch in range(done // config.train.steps_per_epoch, config.train.epochs):
            last_step = (epoch + 1) * config.train.steps_per_epoch
            stopped = False
            while done < last_step and not stopped:
                started = time.perf_counter()
                batches, labels = next(calls)
                state, metrics = train_call(state, store.resident, batches, labels)
                metrics = {name: np.asarray(values) for name, values in metrics.items()}
                _require_finite(metrics, done, checkpoints)
                done += len(labels)
                log.call(done, metrics, time.perf_counter() - started)
                report_progress()
                stopped = ends_after(done)
            means = log.means() if done == last_step else None
            if done == last_step:
                log.epoch(epoch + 1, done, float(make_schedule(config)(last_step - 1)))
            else:
                log.interrupt(done)
            last = epoch + 1 == config.train.epochs
            if stopped or last or (epoch + 1) % config.train.checkpoint_epochs == 0:
                save_state(checkpoints, state, config, means)
            if stopped:
                checkpoints.wait()
                raise Stopped(f"told to stop: step {done} is saved, and the same command goes on")
    return state


def call_inputs(
    config: Config, store: ImageStore, n_normal: int, done: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What each call after that many steps is given, to the last epoch's end: `store.per_call` of
    its batches, and their labels, float32 [steps, D, b]."""
    per_call = steps_per_call(config, store)
    per_epoch = config.train.steps_per_epoch
    while done < config.train.epochs * per_epoch:
        # A call ends where its epoch does.
        steps = range(done, min(done + per_call, (done // per_epoch + 1) * per_epoch))
        indices = batch_indices(config, steps, n_normal, len(store))
        yield store.per_call(indices), (indices >= n_normal).astype(np.float32)
        done = steps.stop


def steps_per_call(config: Config, store: ImageStore) -> int:
    """Steps that one call runs: as set, else one on a CPU, and on accelerators an epoch, or as
    many as the store can hand over at once."""
    if config.train.steps_per_call:
        return config.train.steps_per_call
    if on_cpu():
        return 1
    return min(config.train.steps_per_epoch, store.max_steps(config.train.batch_size))


def on_cpu() -> bool:
    """Whether the steps of a call are laid out one after the other rather than scanned.

    XLA's CPU backend runs convolutions inside a loop by a path many times slower, also where
    the scan is unrolled.
    """
    return jax.default_backend() == "cpu"


def batch_indices(config: Config, steps: range, n_normal: int, n_images: int) -> np.ndarray:
    """Indices int32 [steps, D, b]: of the batches of those steps, the shares of the D devices of
    this process."""
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
    return np.stack(batches).reshape(len(steps), n_devices(), -1)[:, local_device_slice()]


def save_state(
    checkpoints: Checkpoints,
    state: TrainState,
    config: Config,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Saves the state, and the metrics it is judged by, as the checkpoint of its step; raises
    `UserError` if it is not finite."""
    step = int(state.step)
    if not _all_finite(state.variables):
        raise _not_finite(step, "a parameter", checkpoints)
    optimizer = {"state": state.optimizer_state, "step": state.step}
    checkpoints.save(step, state.variables, optimizer, settings=config.to_dict(), metrics=metrics)


def _all_finite(tree: Any) -> bool:
    # On the host, where the state is needed anyway to be saved: nothing to compile.
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(tree)))


def restore_state(checkpoints: Checkpoints, config: Config) -> TrainState:
    """The newest checkpoint's state, replicated over the devices.

    Raises:
      UserError: there is no checkpoint, it cannot be read, or it is of other settings.
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
