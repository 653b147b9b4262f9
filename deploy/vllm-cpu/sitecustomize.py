"""Let torchvision from PyPI import beside a CPU build of torch.

Python imports this module at start-up in every process that has this folder on its PYTHONPATH. vLLM starts
several processes, so a line in a script would not reach them all.

PyPI's torchvision is built against CUDA. Beside a CPU torch its native library does not load, which it tolerates;
then it attaches shape functions to two operators of that library, which fails because nobody has declared them.
vLLM uses torchvision for its transforms only, so declaring the two is enough: after torchvision has tried its
library (where that loads, the operators exist) and before it needs them. A process that never imports torchvision
pays for one entry in ``sys.meta_path``.
"""

import sys
from importlib.machinery import ModuleSpec


class _DeclareOperators:
    """A finder that finds nothing: it only acts, once, just before torchvision needs the operators."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == "torchvision._meta_registrations":
            sys.meta_path.remove(self)
            if not sys.modules["torchvision.extension"]._has_ops():
                self._declare()
        return None

    def _declare(self) -> None:
        from torch.library import Library

        self.library = Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            self.library.define(schema)  # type: ignore[no-untyped-call]


_finder = _DeclareOperators()  # the name keeps the library alive, and with it the declarations
sys.meta_path.insert(0, _finder)
