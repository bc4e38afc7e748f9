"""The nouns: frozen dataclasses, ids as NewTypes, enums, outcomes, legal transitions as data.

Nothing here does I/O or reads a clock.
"""
