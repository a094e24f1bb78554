"""What building and serving share: the cubin, the cache it lives in, the bundle it ships in, the settings.

Standard library only, and nothing of this project outside this folder, so a host without torch or a compiler can
inspect what it was given. Importing touches no file, no environment variable and no GPU.
"""

from .bundle import Bundle, BundleFacts, write_bundle
from .cache import Cache
from .cubin import Absent, Cubin

__all__ = ["Absent", "Bundle", "BundleFacts", "Cache", "Cubin", "write_bundle"]
