"""FC Operator: a Nix CI that is run by declaration.

The rooms of this package and the arrows between them are drawn in ARCHITECTURE.md; each room's
``__init__`` is its charter and holds nothing else.
"""
