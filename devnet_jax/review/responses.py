"""JSON over HTTP, with names of any bytes."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import JSONResponse


class JsonResponse(JSONResponse):
    """A JSON response; bytes of names that are not valid UTF-8 are sent as \\\\udc80."""

    def render(self, content: Any) -> bytes:
        """Returns the body; raises `ValueError` for numbers that JSON lacks."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace")
