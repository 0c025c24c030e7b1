"""See where a TransformerLens model keeps a fact, change it in one call, and measure what the change did.

The public names are listed in `__init__.pyi` and imported when first used, so that `tl-rome --help` need not wait for
torch.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
