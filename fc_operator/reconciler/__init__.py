"""Compares desired with recorded state and writes the difference.

``diff`` is pure; ``apply`` writes in one transaction, set-wise, with one NOTIFY. It can't know
which door the desired state came through; parsing is ``spec``, loading is ``intake``.
"""
