"""API v1: one module per noun; each lists its routes, and ``web.route_table`` joins them."""
