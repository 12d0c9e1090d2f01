"""Making a draft for a target: answers of its own, its hidden states, and the fit to both.

The stages stand in `generate`, `features` and `fit`; what they share is `settings` (one TOML file)
and `corpus`. `packing`, `forward` and `loss` are the objective, `start` is where weights come from
and `export` where they go. The network is that of `drafts/`, called in another way.
"""
