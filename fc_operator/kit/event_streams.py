"""Server-sent events as text in and events out (the WHATWG rules), for whoever reads a stream."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEvent:
    """One event of a stream."""

    event: str = "message"
    data: str = ""
    id: str = ""
    """The last id that the stream has named so far; what a reconnect sends."""


class EventParser:
    """Takes a stream line by line; keeps what outlives an event: the last id, the retry wait."""

    def __init__(self, last_id: str = "") -> None:
        self.completed_id = last_id
        """The id as of the last event that was whole: what a reconnect sends."""
        self._id = last_id
        self.retry_s: float | None = None
        """How long the server wants us to wait before a reconnect."""
        self._event = ""
        self._data: list[str] = []

    def feed(self, line: str) -> ServerEvent | None:
        """The event that ``line`` (without its end) completes, if it does."""
        if not line:
            return self._complete()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_s = int(value) / 1000
        return None

    def _complete(self) -> ServerEvent | None:
        event, data = self._event, self._data
        self._event, self._data = "", []
        self.completed_id = self._id
        if not data:
            return None
        return ServerEvent(event=event or "message", data="\n".join(data), id=self._id)
