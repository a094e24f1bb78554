"""What building and serving share: cubins, the cache that holds them, the bundle that ships them, the settings.

Uses only the standard library (with `cryptography` when a signature is made or checked), and nothing of this project
outside this folder, so a host without torch or a compiler can inspect what it was given. Importing accesses no file, no
environment variable and no GPU.
"""
