"""TensorBoard's events, with the errors of the thread that writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter


class EventWriter(SummaryWriter):
    """Writes events to a local folder; `flush` and `close` raise the errors of doing so.

    TensorboardX writes in a thread. At an error, such as a full disk, that thread would end with a
    traceback, and the program would wait for it forever.
    """

    def __init__(self, folder: epath.PathLike, **options: Any) -> None:
        """Opens a new file of events.

        Args:
          folder: folder of the file, which is created.
          **options: further arguments of `SummaryWriter`.
        """
        super().__init__(str(folder), **options)
        self._folder = folder
        self._error: OSError | None = None
        file = self._get_file_writer().event_writer._ev_writer
        for name in ("write_event", "flush", "close"):
            setattr(file, name, self._keep_error(getattr(file, name)))

    def flush(self) -> None:
        """Writes all events so far; raises `OSError` if one could not be written."""
        super().flush()
        self._raise_error()

    def close(self) -> None:
        """Writes all events and closes the file; raises `OSError` as `flush`."""
        super().close()
        self._raise_error()

    def _keep_error(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a method of the file that does nothing after its first error."""

        def guarded(*arguments: Any) -> Any:
            if self._error is None:
                try:
                    return method(*arguments)
                except OSError as error:
                    self._error = error
            return None

        return guarded

    def _raise_error(self) -> None:
        if self._error is not None:
            error = self._error
            raise OSError(error.errno, error.strerror, str(self._folder)) from error
