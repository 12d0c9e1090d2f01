"""Reuse of what earlier requests have computed, between requests and across restarts.

A prefix of token ids is kept as a tree. Branches hold the rows of layers with full attention,
every id's just once however many texts share it, and can be cut anywhere. A window that has
wrapped and a recurrent state cannot be cut: they are kept in *marks*, at places where another
prompt may branch off. A draft's context is kept like the layers of its target.

    fingerprint.py  which pair a row belongs to
    tree.py         what is kept for which ids, and what goes first: no arrays are touched
    snapshot.py     from a session to arrays of their own, and back
    files.py        one branch or mark as a file
    folder.py       many of them, with a budget and a thread that writes
    cache.py        the cache
    memory.py       a conversation and its cache
"""
