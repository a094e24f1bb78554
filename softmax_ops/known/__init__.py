"""The fast path of repeated calls: no argument checks, no planning, no look-up of a kernel.

calls       the known calls of each direction: the latest ones, and all by metadata
call        one known call
likeness    compares the metadata of tensors with that of earlier ones, all at once
addressed   finds the executable for operands by their addresses
"""
