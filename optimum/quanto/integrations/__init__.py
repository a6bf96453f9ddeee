"""Hooks into other libraries, installed once both sides are loaded."""

import logging
import sys


logger = logging.getLogger(__name__)
_TESTED = "5."
_tried: set[str] = set()


def install() -> None:
    """Install the hooks of every library that is imported by now; log it where a library is not as expected."""
    if "transformers.quantizers.quantizer_quanto" not in sys.modules or "transformers" in _tried:
        return
    _tried.add("transformers")
    version = getattr(sys.modules.get("transformers"), "__version__", "unknown")
    try:
        from .transformers import extend_quantizer

        extend_quantizer()
    except (ImportError, AttributeError) as error:
        logger.warning(
            "transformers %s: its loading is not that of transformers 5 (%s); models loaded with a QuantoConfig "
            "cannot be saved and reloaded",
            version,
            error,
        )
    else:
        level = logging.INFO if version.startswith(_TESTED) else logging.WARNING
        logger.log(
            level,
            "transformers %s (tested with %sx): models loaded with a QuantoConfig can be saved and reloaded",
            version,
            _TESTED,
        )
