"""Make torchvision from PyPI importable with a CPU build of torch.

Python imports this module at start-up in every process that has this folder on its PYTHONPATH. vLLM starts
several processes, so a line in a script would not reach them all.

PyPI's torchvision is built against CUDA. With a CPU build of torch its native library does not load, which it
tolerates. But then it registers shape functions for two operators of that library, which fails because they are not
declared. vLLM uses only torchvision's transforms, so it is enough to declare the two operators: after torchvision has
tried to load its library (which declares them if it loads) and before it needs them. A process that never imports
torchvision only gets one more entry in ``sys.meta_path``.
"""

import sys
from importlib.machinery import ModuleSpec


class _DeclareOperators:
    """An import hook that finds no modules; it declares the operators once, just before torchvision needs them."""

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


_finder = _DeclareOperators()  # this reference keeps the library and its declarations alive
sys.meta_path.insert(0, _finder)
