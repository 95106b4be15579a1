"""Other people's programs: what stands between an agent of any framework and its model.

An agent sends requests in OpenAI's form. The model's name in a request is a component (``agent``), which is called with
what the request has; its answer goes back in the same form. Requests come by the clients of OpenAI's SDK (``client``),
in this process, or by a server on this machine (``proxy``), from any process.
"""
