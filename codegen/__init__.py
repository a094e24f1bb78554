"""Renders and compiles the kernels of softmax_ops: plans -> Spec -> source + catalog -> cubin -> bundle.

A build tool. It needs no GPU, no driver and no torch, and is not part of the wheel.
"""
