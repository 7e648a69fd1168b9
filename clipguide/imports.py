"""Import packages without parts that a run rarely needs.

torchvision and timm import torch's compiler (torch._dynamo, with sympy and triton) to mark two
functions that must not be compiled, and to ask it one question. open_clip imports transformers for
text encoders of transformers. LanceDB imports the client of catalogues on a network. Together these
are half of the imports of `clipguide search`. This module puts stand-ins in their place while their
users are imported. A stand-in loads the real module when an attribute is used. Drawing imports
diffusers, whose schedulers import scipy. The models of transformers need the modules of the
compiler.
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
TRANSFORMERS = "transformers"
OUTPUTS = f"{TRANSFORMERS}.modeling_outputs"
TOWERS = {  # used by open_clip's encoders of transformers; what its CoCa uses is gone since 5.0
    TRANSFORMERS: ("AutoModel", "AutoTokenizer", "AutoConfig", "PretrainedConfig"),
    OUTPUTS: (
        "BaseModelOutput",
        "BaseModelOutputWithPooling",
        "BaseModelOutputWithPoolingAndCrossAttentions",
    ),
}
GONE = "LogitsProcessorList"  # the first name that CoCa uses; others are gone


def vision() -> None:
    """Import torchvision and timm without torch's compiler, and open_clip without transformers,
    before anything else imports them."""
    if "timm" not in sys.modules:
        import torch  # noqa: F401  # before a part of it is stood in for

        asked = f"{COMPILER}.utils"
        ask = {_SUPPORTED: _later(asked, _SUPPORTED)}
        with stood_in({COMPILER: {"disable": disable}, asked: ask}):
            import timm  # noqa: F401
            import torchvision  # noqa: F401
    towers = {module: {n: Later(module, n) for n in names} for module, names in TOWERS.items()}
    towers[TRANSFORMERS][GONE] = None
    with stood_in(towers):
        import open_clip  # noqa: F401


def diffusion() -> None:
    """Import diffusers and the base of transformers' models without scipy, of which some schedulers
    and losses use a function, before anything else imports them."""
    found = importlib.util.find_spec("scipy")
    if found is None or "diffusers" in sys.modules:
        return
    assign = "linear_sum_assignment"
    functions = {assign: _later("scipy.optimize", assign)}
    parts = {"scipy.stats": {}, "scipy.integrate": {}, "scipy.optimize": functions}
    with stood_in({"scipy": {}, **parts}):
        import diffusers.schedulers.scheduling_flow_match_euler_discrete
        import transformers.modeling_utils  # noqa: F401
        from diffusers.schedulers import KarrasDiffusionSchedulers

        for one in KarrasDiffusionSchedulers:  # a lookup may ask for any attribute
            getattr(diffusers, one.name)


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
def stood_in(modules: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Open a context in which stand-ins replace these modules. A stand-in runs no code of its
    module, and has only the given attributes; None means that it lacks the attribute. Its
    submodules can be imported. Any other attribute loads the module. Modules that are loaded
    already do not change."""
    if any(name in sys.modules for name in modules):
        yield
        return
    places = {name: importlib.util.find_spec(name) for name in modules if "." not in name}
    for name, attributes in modules.items():
        sys.modules[name] = module = StandIn(name)
        module.__spec__ = places.get(name)  # shows that the module is installed
        module.__path__ = module.__spec__.submodule_search_locations if module.__spec__ else []
        vars(module).update(attributes)
        parent, _, last = name.rpartition(".")
        if parent in modules:
            vars(sys.modules[parent])[last] = module
    try:
        yield
    finally:
        _forget()


class StandIn(ModuleType):
    """A module that is loaded when an attribute is used that the stand-in does not have."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if found is None and not name.startswith("__"):
            raise ImportError(f"{name} is not asked of a module that is stood in for.")
        return found

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_loaded(self.__name__), name)


class Later(type):
    """A class of a module that is loaded when an instance, an attribute or a check is needed."""

    def __new__(cls, module: str, name: str) -> Later:
        return super().__new__(cls, name, (), {"__module__": module})

    def __init__(cls, module: str, name: str) -> None:
        super().__init__(name, (), {})

    def __call__(cls, *args: Any, **settings: Any) -> Any:
        return _whole(cls)(*args, **settings)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_whole(cls), name)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _whole(cls))


def _whole(cls: Later) -> type:
    return getattr(_loaded(cls.__module__), cls.__name__)


_SUPPORTED = "is_compile_supported"  # for a kind of device; torchvision's `roi_align` asks


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
    """Replace the stand-ins by the modules."""
    for name in [name for name, module in sys.modules.items() if isinstance(module, StandIn)]:
        del sys.modules[name]
