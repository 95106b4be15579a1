"""``optimas show``: one run in the terminal, several beside each other in the terminal and on a page."""
