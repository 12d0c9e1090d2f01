"""The operations that have a Metal kernel of their own, and the choice among them and MLX's.

An operation's file has `<op>_reference`, plain MLX that defines the result, and `<op>_metal`, the
kernel with the same arguments; its source is `metal/<op>.metal`. `choice.py` decides what runs, by
`rules.py`; `linear.py`, `experts.py`, `attend.py` and `selector.py` are what models call.
"""
