"""Bridges to programs of other frameworks: they answer the requests that an agent sends to its model.

An agent sends requests in the format of OpenAI's API. The model's name in a request names a component (``agent``),
which is called with the fields of the request; its answer goes back in the same format. Requests arrive through the
clients of OpenAI's SDK (``client``) in this process, or through a server on this machine (``proxy``) from any process.
"""
