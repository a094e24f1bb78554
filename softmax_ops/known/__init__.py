"""The short way of calls that were made before: no checks, no plan, no look-up of a kernel.

recent      finds the known call of a plain one: first the latest, then by metadata
plain       a known call with scale, mask and causality
general     the same for whatever else a call may ask for
likeness    whether tensors are like others, in one comparison
addressed   which kernel serves operands, by where they lie
"""
