"""Defaulting as the API server does it: nulls are dropped, then defaults filled in."""

from __future__ import annotations

from typing import Any


def fill(schema: dict[str, Any], value: Any) -> Any:
    """A new value with the schema's defaults; parts of a wrong type come back as they are."""
    properties = schema.get("properties")
    if properties and isinstance(value, dict):
        filled = {
            name: fill(properties[name], item) if name in properties else item
            for name, item in value.items()
            if item is not None or name not in properties  # what is not known is refused by name
        }
        for name, sub in properties.items():
            if name not in filled and "default" in sub:
                filled[name] = fill(sub, sub["default"])
        return filled
    if isinstance(value, list):
        items = schema.get("items", {})
        return [fill(items, item) for item in value]
    if isinstance(value, float) and schema.get("type") == "integer" and value.is_integer():
        return int(value)
    return value
