"""Hooks into other libraries, installed once both sides are loaded."""

import importlib.util
import logging
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


logger = logging.getLogger(__name__)
_TESTED = "5."
_QUANTIZER = "transformers.quantizers.quantizer_quanto"
_MODELS = "transformers.modeling_utils"
_tried: set[str] = set()


class _OnceImported:
    """Calls `install` at the end of the import of transformers' models, which has imported the quantizer by then."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODELS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        loader = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def execute_and_install(module: ModuleType) -> None:
                execute(module)
                install()

            loader.exec_module = execute_and_install  # type: ignore[method-assign]
        return spec


def install_when_imported() -> None:
    """`install`, now or once there is something to extend."""
    if _MODELS in sys.modules:
        install()
    else:
        sys.meta_path.insert(0, _OnceImported())


def install() -> None:
    """Install the hooks of every library that is imported by now; log it where a library is not as expected."""
    if _QUANTIZER not in sys.modules or "transformers" in _tried:
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
