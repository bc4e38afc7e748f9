"""Composition: one module per process, the only place where things are built and wired together.

Here live ``up``, ``server``, ``scheduler`` and what they share. Nothing here decides anything; a
rule that needs a home belongs to the feature it is about.
"""
