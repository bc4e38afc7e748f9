"""A revision in, a stream of job rows out.

Checkout, nix-eval-jobs or the built-in walker, limits, the evaluation key. Knows no database: the
same code runs inside a pod. What becomes of the rows is ``planner``'s.
"""
