"""Helpers of the tests: calls and their references, engines, stand-ins for a GPU, its driver and its clock."""
