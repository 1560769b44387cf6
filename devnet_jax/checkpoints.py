"""The one place that knows Orbax: saving, finding and restoring the states of a run."""

from __future__ import annotations

import logging
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from devnet_jax.config import Config, changed_settings, describe
from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)

VARIABLES = "variables"  # what scoring needs: parameters and running statistics
OPTIMIZER = "optimizer"  # what resuming needs besides: the optimiser's state and the step
SETTINGS = "settings"  # what the variables mean nothing without


class Checkpoints:
    """The checkpoints of a run, numbered by the steps done; saved in the background.

    Use it as a context manager: leaving it waits for a save under way.
    """

    def __init__(self, folder: epath.Path, max_to_keep: int = 2) -> None:
        self.folder = folder
        self._manager = ocp.CheckpointManager(
            folder,
            item_handlers={
                VARIABLES: ocp.StandardCheckpointHandler(),
                OPTIMIZER: ocp.StandardCheckpointHandler(),
                SETTINGS: ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, create=False),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """Steps done in the newest checkpoint, or `None` if there is none yet."""
        return self._manager.latest_step()

    def save(self, step: int, variables: Any, optimizer: Any, settings: dict[str, Any]) -> None:
        """Starts to save all three as the checkpoint of `step`; it counts once it is whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{
                    VARIABLES: ocp.args.StandardSave(variables),
                    OPTIMIZER: ocp.args.StandardSave(optimizer),
                    SETTINGS: ocp.args.JsonSave(settings),
                }
            ),
        )

    def restore(self, config: Config, **abstract: Any) -> dict[str, Any]:
        """Restores trees of the newest checkpoint.

        Args:
          config: the settings it must have been saved with, but for those that may change.
          **abstract: for `variables`, `optimizer` or both, a tree of `jax.ShapeDtypeStruct`
            (with shardings where the arrays shall not lie on the default device).

        Returns:
          The named trees, as arrays.

        Raises:
          UserError: there is no checkpoint, it cannot be read, or it is of other settings or
            shapes.
        """
        step = self.latest_step()
        if step is None:
            raise UserError(
                f"{self.folder}: no checkpoint; the run ended before its first one, train again"
            )
        path = self.folder / str(step)
        try:
            settings = self._manager.restore(
                step, args=ocp.args.Composite(**{SETTINGS: ocp.args.JsonRestore()})
            )[SETTINGS]
            metadata = self._manager.item_metadata(step)
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
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
                ),
            )
        except Exception as error:
            raise _unreadable(path, error) from error
        logger.info("restored checkpoint %s", path)
        return {name: restored[name] for name in abstract}


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
