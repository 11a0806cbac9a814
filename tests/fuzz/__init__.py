"""Damaged files of every kind that the product reads: read as before, refused in one line, or a failure.

`mutators` damage, `targets` list what is read, `runner` reads in a process of its own, so that a crash or a hang of
native code is an outcome like any other. A case is a number: the same number damages the same target in the same way.
`make test` runs 3,000 cases, `make fuzz` other ones for an hour.
"""
