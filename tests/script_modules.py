"""Scripts of this repository as modules: those outside the package, which users run by their path."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


ROOT = Path(__file__).parents[1]


def load_script(path: str | Path) -> ModuleType:
    """The module of a script such as "examples/pretrain.py", made anew; it finds its neighbours as when it is run."""
    file = ROOT / path
    # At the end: `evaluate` is a library, and a script of that name stands in examples/.
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    spec = importlib.util.spec_from_file_location(f"{file.stem}_script", file)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and processes find the module by its name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
