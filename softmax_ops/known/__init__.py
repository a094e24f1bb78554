"""The short way of calls that were made before: no checks, no plan, no look-up of a kernel.

calls       the known calls of each direction: the latest, and the others by metadata
call        one of them
likeness    whether tensors are like others, in one comparison
addressed   which kernel serves operands, by where they lie
"""
