"""Declaration and checks of settings: dataclass fields with a meaning and a range."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ml_collections import ConfigDict, config_dict

from devnet_jax.errors import UserError, nearest


def setting(
    default: Any,
    meaning: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    may_change: bool = False,
) -> Any:
    """Declares a setting: a dataclass field with metadata.

    Args:
      default: default value.
      meaning: noun phrase for docs/settings.md.
      minimum: smallest allowed value; `None` for no limit.
      maximum: largest allowed value; `None` for no limit.
      may_change: True if the setting may differ when a run is resumed.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "meaning": meaning,
            "minimum": minimum,
            "maximum": maximum,
            "may_change": may_change,
        },
    )


def find_changes(old: Any, new: Any, name: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yields (dotted name, (old value, new value)) of settings that differ and must not.

    Args:
      old: dataclass of settings.
      new: another instance of the same dataclass.
      name: dotted name of the section, to begin names with.
    """
    for field in dataclasses.fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if dataclasses.is_dataclass(before):
            yield from find_changes(before, after, f"{name}.{field.name}")
        elif before != after and not field.metadata["may_change"]:
            yield f"{name}.{field.name}", (before, after)


def to_config_dict(section: type) -> ConfigDict:
    """Returns the defaults of a section as a `ConfigDict`, for config files and overrides."""
    result = ConfigDict()
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            result[field.name] = to_config_dict(typing.cast(type, hint))
        elif field.default is None:  # typed, so that overrides are parsed as that type
            result[field.name] = config_dict.placeholder(_allowed_types(hint)[0])
        elif len(_allowed_types(hint)) > 1:  # a number or a text, whichever an override is
            result[field.name] = config_dict.FieldReference(field.default, field_type=object)
        else:
            result[field.name] = field.default
    return result


def from_dict(section: type, values: Mapping[str, Any], name: str) -> Any:
    """Builds a section from nested dictionaries; missing settings get their defaults.

    Args:
      section: dataclass of settings.
      values: nested dictionaries.
      name: name of the section in messages.

    Raises:
      UserError: if a setting is unknown or has a wrong value; names the first one.
    """
    hints = typing.get_type_hints(section)
    fields = {field.name: field for field in dataclasses.fields(section)}
    checked = {}
    for key, value in values.items():
        if key not in fields:
            raise UserError(f"{name}.{key}: no such setting; {nearest(key, fields)}")
        hint = hints[key]
        if not dataclasses.is_dataclass(hint):
            checked[key] = _check_value(value, hint, fields[key].metadata, f"{name}.{key}")
        elif isinstance(value, (Mapping, ConfigDict)):
            checked[key] = from_dict(typing.cast(type, hint), value, f"{name}.{key}")
        else:
            raise UserError(f"{name}.{key} = {value!r}: must be a group of settings")
    return section(**checked)


def _check_value(value: Any, hint: Any, metadata: Mapping[str, Any], name: str) -> Any:
    """Returns the value as the declared type; raises `UserError` if type or range is wrong."""
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise UserError(f"{name} = {value!r}: unknown; {nearest(str(value), choices)}")
        return value
    allowed = _allowed_types(hint)
    if value is None and type(None) in allowed:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and float in allowed:
        value = float(value)
    if type(value) not in allowed:
        wanted = " or ".join("none" if kind is type(None) else kind.__name__ for kind in allowed)
        raise UserError(f"{name} = {value!r}: must be {wanted}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} = {value!r}: must be finite")
    low, high = metadata["minimum"], metadata["maximum"]
    if isinstance(value, str):
        return value
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise UserError(f"{name} = {value!r}: must be {bounds}")
    return value


def _allowed_types(hint: Any) -> tuple[type, ...]:
    """Returns the members of a union, or the type itself."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
