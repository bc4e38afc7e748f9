"""State changes that touch several features at once.

Accept manifests, start and end an evaluation, finish a step, cancel, restart, bump, keep: one
function each, one transaction each, called by every entrance alike. What touches one feature only
lives in that feature; what needs no transaction does not live here.
"""
