"""Writes and reads the folder of one checkpoint with Orbax."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from devnet_jax.config import Config, changed_settings, describe_changes
from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)

# Items of a checkpoint.
VARIABLES = "variables"  # parameters and running statistics: all that scoring needs
OPTIMIZER = "optimizer"  # optimiser state and step, needed to resume
SETTINGS = "settings"  # settings of the run, compared with those of the reader

TEMPORARY_MARKER = ".orbax-checkpoint-tmp"  # in the names of folders being written or deleted


class CheckpointFiles:
    """Writes and reads checkpoints in this process, without waiting for other processes."""

    def __init__(self) -> None:
        # By default every process writes a part and waits for the others.
        this_process_only = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        # By default a thread creates the folders; if it fails, other threads wait for minutes.
        create_folders_first = ocp.AsyncOptions(create_directories_asynchronously=False)
        arrays = ocp.PyTreeCheckpointHandler(
            multiprocessing_options=this_process_only,
            type_handler_registry=ocp.type_handlers.create_type_handler_registry(
                (np.ndarray, _WaitForAllWrites()),
                (jax.Array, ocp.type_handlers.ArrayHandler()),  # unused, but Orbax requires it
            ),
        )
        # Orbax both raises errors and logs their tracebacks.
        absl_logging.get_absl_logger().addFilter(_drop_orbax_tracebacks)
        self._checkpointer = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(
                    multiprocessing_options=this_process_only, async_options=create_folders_first
                ),
                **{
                    VARIABLES: arrays,
                    OPTIMIZER: arrays,
                    SETTINGS: ocp.JsonCheckpointHandler(multiprocessing_options=this_process_only),
                },
            ),
            multiprocessing_options=this_process_only,
        )

    def close(self) -> None:
        self._checkpointer.close()

    def write(
        self, path: epath.Path, variables: Any, optimizer: Any, settings: Mapping[str, Any]
    ) -> None:
        """Writes a checkpoint to a temporary folder, then renames it.

        Args:
          path: folder of the checkpoint, which must not exist.
          variables: tree of NumPy arrays.
          optimizer: tree of NumPy arrays.
          settings: settings of the run.
        """
        items = {
            VARIABLES: ocp.args.PyTreeSave(variables),
            OPTIMIZER: ocp.args.PyTreeSave(optimizer),
            SETTINGS: ocp.args.JsonSave(settings),
        }
        before = threading.enumerate()
        try:
            self._checkpointer.save(path, args=ocp.args.Composite(**items))
        except BaseException:
            # Orbax raises as soon as one of its threads has failed. Wait for the others, so that
            # nothing is written after this method has returned.
            for thread in set(threading.enumerate()) - set(before):
                if type(thread).__module__.startswith("orbax."):
                    threading.Thread.join(thread)  # Orbax's own join raises the thread's error
            raise

    def read(self, path: epath.Path, config: Config, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """Reads trees of a checkpoint.

        Args:
          path: folder of the checkpoint.
          config: settings of the run; the checkpoint must have been saved with the same, except for
            those that may change when a run is resumed.
          abstract: for `variables`, `optimizer` or both, a tree of `jax.ShapeDtypeStruct`.

        Returns:
          The named trees, as arrays with the shardings of `abstract`.

        Raises:
          UserError: if the checkpoint cannot be read, or its settings or shapes differ.
        """
        try:
            settings = self._read(path, {SETTINGS: ocp.args.JsonRestore()})[SETTINGS]
            metadata = self._checkpointer.metadata(path).item_metadata
            stored = {name: _shapes(metadata[name]) for name in abstract}
        except Exception as error:
            raise _damaged(path, error) from error
        changed = changed_settings(Config.from_dict(settings, source=path), config)
        if config.train.warm_start:  # labels may have been added since
            changed.pop("config.dataset.n_anomaly", None)
        if changed:
            raise UserError(
                f"{path}: saved by a run with other settings: {describe_changes(changed)}"
            )
        for name, tree in abstract.items():
            if not stored[name]:
                raise _damaged(path, FileNotFoundError(f"{name} is empty"))
            _require_same_shapes(path / name, stored[name], _shapes(tree))
        args = {
            name: ocp.args.PyTreeRestore(tree, jax.tree.map(_restore_as_numpy, tree))
            for name, tree in abstract.items()
        }
        try:
            restored = self._read(path, args)
        except Exception as error:
            raise _damaged(path, error) from error
        return {name: jax.tree.map(_to_device, restored[name], abstract[name]) for name in abstract}

    def _read(self, path: epath.Path, args: Mapping[str, Any]) -> Any:
        return self._checkpointer.restore(path, args=ocp.args.Composite(**args))


class _WaitForAllWrites(ocp.type_handlers.NumpyHandler):
    """Writes arrays; after an error it waits for the other writes before raising.

    Orbax returns at the first error. The remaining writes would then create files in a folder that
    is already deleted, and print tracebacks because the event loop is closed.
    """

    async def _background_serialize(
        self, values: Sequence[Any], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> None:
        write = super()._background_serialize
        parts = zip(values, infos, args or [ocp.SaveArgs()] * len(values), strict=True)
        writes = (write([value], [info], [arg]) for value, info, arg in parts)
        for result in await asyncio.gather(*writes, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result


def copy_to_host(tree: Any) -> Any:
    """Copies the arrays of a tree to host memory, so that their buffers can be donated."""
    return jax.tree.map(np.array, jax.device_get(tree))


def delete_checkpoint(path: epath.Path) -> None:
    """Deletes the folder of a checkpoint if it exists.

    On a local disk it is renamed first: a process killed during the deletion leaves a temporary
    folder, not an incomplete checkpoint.
    """
    if not path.exists():
        return
    if "://" not in os.fspath(path) and TEMPORARY_MARKER not in path.name:
        path = path.rename(path.with_name(path.name + TEMPORARY_MARKER))
    path.rmtree()


def system_error_message(error: BaseException | None) -> str | None:
    """Returns the operating system's message if a file operation caused an error, else `None`."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if code := re.search(r"os_error_code='(\d+)'", str(error)):  # TensorStore's
            return os.strerror(int(code[1]))
        error = error.__cause__ or error.__context__
    return None


def _drop_orbax_tracebacks(record: logging.LogRecord) -> bool:
    """Log filter: False for records of Orbax with a traceback, which are logged as debug."""
    if record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname:
        logger.debug("%s", record.getMessage())
        return False
    return True


def _restore_as_numpy(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
    return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)


def _to_device(array: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.device_put(array, leaf.sharding)


def _damaged(path: epath.Path, error: Exception) -> UserError:
    # Every error of Orbax means the same to the user here; its message is logged as debug.
    logger.debug("restoring %s failed: %s", path, error)
    return UserError(
        f"{path}: the checkpoint is damaged ({type(error).__name__}); delete this folder to use "
        "the previous checkpoint, or train again"
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each leaf by its path, for arrays, abstract arrays or Orbax metadata."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree.leaves_with_path(tree)
        if hasattr(leaf, "shape")  # Orbax metadata has a leaf without a shape for an empty node
    }


def _require_same_shapes(
    path: epath.Path, stored: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]
) -> None:
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise UserError(
                f"{path}: the checkpoint is of another network: the shape of {name} is "
                f"{stored.get(name, 'missing')}, but config.json requires "
                f"{wanted.get(name, 'none')}"
            )
