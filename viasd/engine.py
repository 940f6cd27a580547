"""The engine: models of a pair, their views and caches, and the readers that decoders open on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch

from viasd.compiled import CompiledForward, LayerCompiler, compile_obstacle
from viasd.decode import RowReader
from viasd.forward import Forward, FusedForward, ModuleForward, PlainForward, obstacle
from viasd.graphs import CudaRecorder, GraphForward, Record
from viasd.layers import FusedLayer
from viasd.masks import MaskBank
from viasd.models import Branches, Kept, Pair, PairError, attention_layers, common_vocabulary, load_model, make_view
from viasd.reader import Probe, Reader
from viasd.views import ViewReader

T = TypeVar("T")
R = TypeVar("R", bound=Reader)
Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float64"]
Mode = Literal["auto", "eager", "fused", "graphs", "compile"]


def resolve_device(device: Device) -> torch.device:
    """`auto` is CUDA where there is one. Raises PairError when CUDA is asked for and absent."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise PairError("engine.device=cuda: this torch sees no CUDA device; accepted here: auto, cpu")
    return torch.device(device)


def resolve_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """`auto` is float32 on a CPU and bfloat16 on CUDA."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    named: dict[str, torch.dtype] = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float64": torch.float64,
    }
    return named[dtype]


class Engine:
    """Holds models and caches; every method of a comparison opens its readers here.

    Decoders run one after the other, so the caches are shared between them: prefill starts each sequence anew.
    `slots` bounds prompt + output (tokens). Views are made once per list of kept layers. `mode` says how forwards run:
    `eager` through the library's modules, `fused` through `viasd.forward.FusedForward`, `graphs` through recordings of
    that (CUDA alone), `compile` through its layers compiled, on CUDA recorded too; `auto`, for a model that can be
    fused, is `graphs` on CUDA and `fused` on a CPU, and `eager` for others.
    """

    def __init__(self, models: dict[str, Any], vocabulary: int, slots: int, mode: Mode = "auto") -> None:
        self.models, self.vocabulary, self.slots, self.mode = models, vocabulary, slots, mode
        self.probe = Probe()
        # Both are read when the first reader opens. Tests put a recorder for CPUs here, and a compiler that is quick.
        recorded = self.device.type == "cuda" and mode in ("auto", "graphs", "compile")
        self.record: Record | None = CudaRecorder() if recorded else None
        self.compiler = LayerCompiler("inductor")
        self.head_names: dict[str, str] = {}  # of the pair: folders or names on a hub
        self.heads: dict[str, Any] = {}  # modules that draft from the target's features, by name, once they are loaded
        self._views: dict[tuple[int, ...] | Branches, Any] = {}
        self._caches: dict[str, Any] = {}
        self._masks: dict[Any, MaskBank] = {}
        self._forwards: dict[tuple[int, str], Forward] = {}
        self._plain: dict[tuple[int, str], PlainForward] = {}
        self._layers: dict[int, FusedLayer] = {}  # by identity of the module; views share those of the target
        if mode == "graphs" and self.device.type != "cuda":
            raise PairError(
                f"engine.mode=graphs: the models are on {self.device}; accepted there: auto, eager, fused, compile"
            )

    @classmethod
    def load(
        cls,
        pair: Pair,
        roles: Sequence[str],
        device: Device,
        dtype: Dtype,
        slots: int,
        mode: Mode = "auto",
        load: Callable[[Pair, str, torch.dtype, torch.device], Any] = load_model,
    ) -> Engine:
        """The pair's models for the given roles, by `load`. Raises PairError for whatever does not fit."""
        where = resolve_device(device)
        kind = resolve_dtype(dtype, where)
        vocabulary = common_vocabulary(pair)
        models = {role: load(pair, role, kind, where) for role in roles if role not in pair.heads}
        engine = cls(models, vocabulary, slots, mode)
        engine.head_names = dict(pair.heads)
        return engine

    @property
    def device(self) -> torch.device:
        return self.models["target"].device

    @property
    def dtype(self) -> torch.dtype:
        return self.models["target"].dtype

    def readers(self) -> EngineReaders:
        """A fresh set of readers for one decoder."""
        return EngineReaders(self)

    def cache(self, name: str) -> Any:
        """The slot cache of that name, made at first use."""
        from viasd.kv_cache import SlotCache  # needs transformers, as do the models that exist by now

        if name not in self._caches:
            self._caches[name] = SlotCache(self.slots, spare=0 if self.record is None else 1)
        return self._caches[name]

    def masks(self, model: Any) -> MaskBank:
        """The attention masks of a model's family, shared by all readers that need the same."""
        config = model.get_decoder().config
        types = getattr(config, "layer_types", None)
        key = (None if types is None else tuple(sorted(set(types))), getattr(config, "sliding_window", None))
        if key not in self._masks:
            self._masks[key] = MaskBank(config, self.slots, self.dtype, self.device)
        return self._masks[key]

    def forward(self, model: Any, cache: str) -> Forward:
        """How a model runs on the cache of that name. Raises PairError where it is to run fused and cannot."""
        key = (id(model), cache)
        if key not in self._forwards:
            self._forwards[key] = self._open_forward(model, cache)
        return self._forwards[key]

    def _open_forward(self, model: Any, cache: str) -> Forward:
        kept = next((kept for kept, view in self._views.items() if view is model), None)
        plain = self.plain_forward(model if kept is None else self.models["target"], cache)
        if kept is not None:
            plain = plain.keeping(kept)
        if self.record is None or not isinstance(plain, FusedForward):
            return plain
        return GraphForward(plain, self.cache(cache), self.record)

    def plain_forward(self, model: Any, cache: str) -> PlainForward:
        """How a whole model runs on the cache of that name when nothing is recorded. Raises PairError as `forward`."""
        key = (id(model), cache)
        if key not in self._plain:
            self._plain[key] = self._open_plain(model, cache)
        return self._plain[key]

    def _open_plain(self, model: Any, cache: str) -> PlainForward:
        store, masks, mode = self.cache(cache), self.masks(model), self.mode
        reason = obstacle(model)
        if mode in ("fused", "graphs", "compile") and reason is not None:
            raise PairError(f"engine.mode={mode}: a model of this pair has {reason}; accepted for it: auto, eager")
        if mode == "eager" or reason is not None:
            return ModuleForward(model, store, masks)
        if mode == "compile" and (lack := compile_obstacle(self.device, self.compiler.backend)) is not None:
            raise PairError(f"engine.mode=compile: {lack}; accepted here: auto, eager, fused")
        layers = [self._fused(layer) for layer in model.get_decoder().layers]
        if mode == "compile":
            return CompiledForward(model, store, masks, layers, self.compiler)
        return FusedForward(model, store, masks, layers)

    def prepare(self) -> None:
        """Do now what a forward would else do when it is first asked for: all recordings that readers may need.

        For after some decoding, since recordings need caches, and blocks are recorded as they were asked for.
        """
        for forward in self._forwards.values():
            if isinstance(forward, GraphForward):
                forward.prepare()

    def _fused(self, layer: Any) -> FusedLayer:
        if id(layer) not in self._layers:
            self._layers[id(layer)] = FusedLayer(layer)
        return self._layers[id(layer)]

    def view(self, kept: Kept) -> Any:
        """The target with only these layers, or branches of layers."""
        key = kept if isinstance(kept, Branches) else tuple(kept)
        if key not in self._views:
            self._views[key] = make_view(self.models["target"], key)
        return self._views[key]

    @property
    def views(self) -> dict[tuple[int, ...] | Branches, Any]:
        """The views made so far, by the layers or branches they keep."""
        return dict(self._views)

    def head(self, name: str, load: Callable[[str], T]) -> T:
        """The head of that name, loaded at first use. Raises PairError for a name the pair lacks."""
        if name not in self.heads:
            if name not in self.head_names:
                raise PairError(f"this engine has no head {name!r}; it has: {sorted({*self.heads, *self.head_names})}")
            self.heads[name] = load(self.head_names[name])
        found: T = self.heads[name]
        return found

    def model(self, role: str) -> Any:
        """The model of a role. Raises PairError for a role the pair lacks."""
        if role not in self.models:
            raise PairError(f"this engine has no model for role {role!r}; it has: {sorted(self.models)}")
        return self.models[role]


class EngineReaders:
    """The readers of one decoder. A reader is opened once; one that others lean on comes first."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._readers: dict[str, Reader] = {}

    @property
    def device(self) -> torch.device:
        return self._engine.device

    @property
    def vocabulary(self) -> int:
        return self._engine.vocabulary

    def get(self, role: str, name: str | None = None) -> Reader:
        """The reader of a model of the pair, under the name of its role or another one."""
        return self._open(name or role, role, self._engine.model(role))

    def slim(self, kept: Kept, cache: str, role: str = "slim", stronger: RowReader | None = None) -> Reader:
        """The slim view; with `cache="shared"` it leans on the target's reader, which is opened too.

        `stronger`: the reader of another view; if it is on the target's cache as well, this one leans on it, and its
        layers must be among those of that one: PairError. Else it leans on the last one opened there.
        """
        view = self._engine.view(kept)
        if cache != "shared":
            return self._open(role, f"view {role}", view)  # not the cache of a model of that role
        target = self.get("target")
        if not isinstance(stronger, Reader) or stronger.cache is not target.cache:
            others = [one for name, one in self._readers.items() if name != role and one.cache is target.cache]
            stronger = others[-1]
        if stronger is target:
            return self._open(role, "target", view, target)
        above = next(other for other, model in self._engine.views.items() if model is stronger.model)
        if missing := sorted({*attention_layers(kept)} - {*attention_layers(above)}):
            raise PairError(
                f"{role}: layer {missing[0]} is not one of the stronger slim verifier, whose keys it would read; "
                "accepted on a shared cache: nested masks, else cache=separate"
            )
        return self._open(role, "target", view, stronger)

    def changing(self, kept: Kept | None, role: str) -> ViewReader:
        """A reader on the target's cache whose view can change (`viasd.views`); the target's is opened too."""
        engine, target = self._engine, self.get("target")
        if role in self._readers:
            raise ValueError(f"one decoder cannot have two different readers for the role {role!r}")
        others = [one for one in self._readers.values() if one.cache is target.cache and one is not target]
        if fixed := [one.role for one in others if not isinstance(one, ViewReader)]:
            raise PairError(f"{fixed[0]}: a drafter changes its layers on the target's cache; accepted: cache=separate")
        whole = engine.models["target"]
        model, forward = whole if kept is None else engine.view(kept), engine.plain_forward(whole, "target")
        reader = self._readers[role] = ViewReader(role, model, kept, forward, engine.probe, target)
        return reader

    def views(self) -> list[Reader]:
        """The readers opened so far that show the target without some of its layers."""
        views = [id(view) for view in self._engine.views.values()]
        return [reader for reader in self._readers.values() if id(reader.model) in views]

    def add(self, role: str, make: Callable[[Engine, Reader], R]) -> R:
        """A reader of another kind, that looks at what the target computes: the target's is opened too."""
        if role in self._readers:
            raise ValueError(f"one decoder cannot have two different readers for the role {role!r}")
        made = make(self._engine, self.get("target"))
        self._readers[role] = made
        return made

    def opened(self) -> Sequence[RowReader]:
        return list(self._readers.values())

    def _open(self, role: str, cache: str, model: Any, stronger: Reader | None = None) -> Reader:
        if role not in self._readers:
            engine = self._engine
            store, forward = engine.cache(cache), engine.forward(model, cache)
            self._readers[role] = Reader(role, model, store, forward, engine.vocabulary, engine.probe, stronger)
        reader = self._readers[role]
        if reader.model is not model or reader.stronger is not stronger:
            raise ValueError(f"one decoder cannot have two different readers for the role {role!r}")
        return reader
