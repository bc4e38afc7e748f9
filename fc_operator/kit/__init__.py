"""Domain-free tools that could each be a library of their own.

Nothing here knows what a build is. When a tool starts to know, it moves to the room that does.
"""
