"""The one place that knows Orbax: the folder of one checkpoint, written and read."""

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

from devnet_jax.config import Config, changed_settings, describe
from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)

VARIABLES = "variables"  # what scoring needs: parameters and running statistics
OPTIMIZER = "optimizer"  # what resuming needs besides: the optimiser's state and the step
SETTINGS = "settings"  # what the variables mean nothing without

TEMPORARY = ".orbax-checkpoint-tmp"  # in the names of folders that are not yet, or no longer, whole


class CheckpointFiles:
    """Writes and reads checkpoints, in this process alone."""

    def __init__(self) -> None:
        # By default all processes would write, each a part, and wait for one another to do so.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        # By default a thread makes the folders; where that fails, others wait for it for minutes.
        here = ocp.AsyncOptions(create_directories_asynchronously=False)
        arrays = ocp.PyTreeCheckpointHandler(
            multiprocessing_options=alone,
            type_handler_registry=ocp.type_handlers.create_type_handler_registry(
                (np.ndarray, _ArraysOrNothing()),
                (jax.Array, ocp.type_handlers.ArrayHandler()),  # unused, but missed if left out
            ),
        )
        # Orbax raises its errors, and logs their tracebacks besides.
        absl_logging.get_absl_logger().addFilter(_is_no_traceback_of_orbax)
        self._checkpointer = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(
                    multiprocessing_options=alone, async_options=here
                ),
                **{
                    VARIABLES: arrays,
                    OPTIMIZER: arrays,
                    SETTINGS: ocp.JsonCheckpointHandler(multiprocessing_options=alone),
                },
            ),
            multiprocessing_options=alone,
        )

    def close(self) -> None:
        self._checkpointer.close()

    def write(
        self, path: epath.Path, variables: Any, optimizer: Any, settings: Mapping[str, Any]
    ) -> None:
        """Writes a checkpoint, in a temporary folder that gets its name in the end.

        Args:
          path: where nothing is.
          variables: NumPy arrays.
          optimizer: NumPy arrays.
          settings: of the run.
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
            # It raises when the first of its threads has failed; nothing shall be written later.
            for thread in set(threading.enumerate()) - set(before):
                if type(thread).__module__.startswith("orbax."):
                    threading.Thread.join(thread)  # its own would raise what the thread has raised
            raise

    def read(self, path: epath.Path, config: Config, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """Reads trees of a checkpoint.

        Args:
          path: of its folder.
          config: the settings it must have been saved with, but for those that may change.
          abstract: for `variables`, `optimizer` or both, a tree of `jax.ShapeDtypeStruct`.

        Returns:
          The named trees, as arrays with the shardings asked for.

        Raises:
          UserError: it cannot be read, or it is of other settings or shapes.
        """
        try:
            settings = self._read(path, {SETTINGS: ocp.args.JsonRestore()})[SETTINGS]
            metadata = self._checkpointer.metadata(path).item_metadata
            stored = {name: _shapes(metadata[name]) for name in abstract}
        except Exception as error:
            raise _unreadable(path, error) from error
        changed = changed_settings(Config.from_dict(settings, source=path), config)
        if changed:
            raise UserError(f"{path}: saved by a run with other settings: {describe(changed)}")
        for name, tree in abstract.items():
            if not stored[name]:
                raise _unreadable(path, FileNotFoundError(f"{name} is empty"))
            _require_same_shapes(path / name, stored[name], _shapes(tree))
        args = {
            name: ocp.args.PyTreeRestore(tree, jax.tree.map(_restore_as_numpy, tree))
            for name, tree in abstract.items()
        }
        try:
            restored = self._read(path, args)
        except Exception as error:
            raise _unreadable(path, error) from error
        return {name: jax.tree.map(_placed, restored[name], abstract[name]) for name in abstract}

    def _read(self, path: epath.Path, args: Mapping[str, Any]) -> Any:
        return self._checkpointer.restore(path, args=ocp.args.Composite(**args))


class _ArraysOrNothing(ocp.type_handlers.NumpyHandler):
    """Writes arrays, and where one cannot be written still waits for the others.

    Orbax goes on at the first error: what the others are still doing would come to light later, as
    files in a folder that was deleted and as tracebacks of an event loop that is closed.
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


def copied(tree: Any) -> Any:
    """The arrays of a tree in the host's memory, where no donation to a next step reaches them."""
    return jax.tree.map(np.array, jax.device_get(tree))


def delete_checkpoint(path: epath.Path) -> None:
    """Deletes the folder of a checkpoint, if it is there; nothing that is left of it after a kill
    looks like one."""
    if not path.exists():
        return
    if "://" not in os.fspath(path) and TEMPORARY not in path.name:
        path = path.rename(path.with_name(path.name + TEMPORARY))
    path.rmtree()


def reason_of(error: BaseException | None) -> str | None:
    """The system's words, if an error comes from writing a file; else `None`."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if code := re.search(r"os_error_code='(\d+)'", str(error)):  # TensorStore's
            return os.strerror(int(code[1]))
        error = error.__cause__ or error.__context__
    return None


def _is_no_traceback_of_orbax(record: logging.LogRecord) -> bool:
    if record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname:
        logger.debug("%s", record.getMessage())
        return False
    return True


def _restore_as_numpy(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
    return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)


def _placed(array: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.device_put(array, leaf.sharding)


def _unreadable(path: epath.Path, error: Exception) -> UserError:
    # Whatever Orbax raises here means the same to the user; its words go to the log.
    logger.debug("restoring %s failed: %s", path, error)
    return UserError(
        f"{path}: the checkpoint is damaged ({type(error).__name__}); delete this folder to go "
        "back to the one before it, or train again"
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Flat name → shape, from arrays, abstract arrays or Orbax's metadata alike."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree.leaves_with_path(tree)
        if hasattr(leaf, "shape")  # Orbax's metadata marks empty nodes with a leaf of its own
    }


def _require_same_shapes(
    path: epath.Path, stored: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]
) -> None:
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise UserError(
                f"{path}: the checkpoint is of another network: {name} is "
                f"{stored.get(name, 'absent')} there, the settings in config.json ask for "
                f"{wanted.get(name, 'none')}"
            )
