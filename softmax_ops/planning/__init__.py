"""From integers to integers: which kernel computes a geometry, and the grids and argument bytes of its launches.

geometry -> selection -> launch_plan, with what is special about `tile` and `split` kernels. Needs no torch and no
driver, and nothing of softmax_ops but artifacts.
"""
