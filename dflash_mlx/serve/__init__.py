"""`dflash-mlx serve`: OpenAI's and Anthropic's HTTP APIs over one loaded pair.

A request goes through `guard` (who may ask, how much), is read by the models of its API
(`openai_chat`, `openai_text`, `openai_responses`, `anthropic`) into one form (`wanted`), becomes
ids in `prompt` and a ticket of the engine; `guides` hold its answer to a schema or a call. What
the engine brings is cut into parts by `answer` and written by the API's encoder (`*_events`), as
one object or as server-sent events (`events`).
"""
