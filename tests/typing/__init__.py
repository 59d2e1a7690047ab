"""What a type checker makes of the public names.

mypy and pyright check these files; pytest runs them, so that the types are also true.
"""
