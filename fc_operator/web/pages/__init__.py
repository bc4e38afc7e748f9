"""Pages for people: rendered here, usable without script, from the same reads as the API."""
