"""Rows in, graph out: jobs, steps, edges, what is already valid or substitutable.

Also the ingest of that graph in batches. Who may run what, when, is ``queue``'s.
"""
