"""Declarations of the components that a user's program calls, and of the parts of it that may be tuned.

    draft = prompt("Answer the question from the passages.")   # a request to the model of the run
    k = setting(3, choices=(1, 2, 3, 5))                       # k.value

    @component                                                 # a function of the user's
    async def search(question, k): ...

    @component(prompt=prompt("Check the draft."))              # one that asks its own model with the tuned prompt
    async def check(prompt, question, draft): ...

    async def rag(question): ...                               # the program

Within a run every call of a component is recorded (``core.program``), and the program gets a plain copy of what the
component returned. A component has the name of the variable that holds it.
"""
