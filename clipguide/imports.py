"""Import packages without parts that a run rarely needs.

torchvision and timm import torch's compiler (torch._dynamo, with sympy and triton) to mark two
functions and to ask one question. LanceDB imports a client for network catalogues. Together they
are a third of the imports of `clipguide search`. Stand-ins replace these parts while the packages
are imported. A part is loaded when any other attribute of it is used.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
CLIENT = "lance_namespace_urllib3_client"


def vision() -> None:
    """Import torchvision and timm without torch's compiler, before anything else imports them."""
    if "timm" in sys.modules:
        return
    import torch  # noqa: F401  # before a part of it is stood in for

    asked = f"{COMPILER}.utils"
    with stood_in({COMPILER: {"disable": disable}, asked: {_SUPPORTED: _later(asked, _SUPPORTED)}}):
        import timm  # noqa: F401
        import torchvision  # noqa: F401


def lancedb() -> ModuleType:
    """Return LanceDB, imported without the client for network catalogues. Raise ModuleNotFoundError
    if it is not installed."""
    if importlib.util.find_spec(CLIENT) is None:
        return importlib.import_module("lancedb")
    with stood_in({CLIENT: {}}):
        return importlib.import_module("lancedb")


def disable(
    function: Callable | None = None, recursive: bool = True, *, reason: str | None = None
) -> Callable:
    """Apply torch.compiler.disable once the compiler is loaded."""
    if function is None:
        return functools.partial(disable, recursive=recursive, reason=reason)

    @functools.wraps(function)
    def call(*args: Any, **settings: Any) -> Any:
        if COMPILER not in sys.modules:
            return function(*args, **settings)
        marked = sys.modules[COMPILER].disable(function, recursive, reason=reason)
        return marked(*args, **settings)

    return call


@contextlib.contextmanager
def stood_in(modules: Mapping[str, Mapping[str, Callable]]) -> Iterator[None]:
    """Return a context in which these modules are not run, and have only these functions. Modules
    inside them can be imported, and any other attribute loads them. Modules that are loaded already
    do not change."""
    if any(name in sys.modules for name in modules):
        yield
        return
    places = {name: importlib.util.find_spec(name) for name in modules if "." not in name}
    for name, functions in modules.items():
        sys.modules[name] = module = StandIn(name)
        module.__path__ = places[name].submodule_search_locations if name in places else []
        vars(module).update(functions)
    try:
        yield
    finally:
        _forget()


class StandIn(ModuleType):
    """A module that is loaded when an attribute is used that it does not have."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_loaded(self.__name__), name)


_SUPPORTED = "is_compile_supported"  # of a kind of device; torchvision's `roi_align` asks


def _later(module: str, function: str) -> Callable:
    """Return a function of a module that is loaded when it is called."""

    def call(*args: Any, **settings: Any) -> Any:
        return getattr(_loaded(module), function)(*args, **settings)

    return call


def _loaded(name: str) -> ModuleType:
    """Return the module itself."""
    _forget()
    return importlib.import_module(name)


def _forget() -> None:
    """Replace the stand-ins by the modules themselves."""
    for name in [name for name, module in sys.modules.items() if isinstance(module, StandIn)]:
        del sys.modules[name]
