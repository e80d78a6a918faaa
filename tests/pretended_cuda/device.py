"""A CUDA device that is not there: tensors that say they are on `cuda:0`, live on the CPU, and keep a log.

    with pretended_cuda(root) as device:
        model = build(...).to("cuda")
        model(tokens.to("cuda")).sum().backward()
    device.events          # every fault and every wait, each with the line of the project that caused it

A wrapper subclass carries the device, so that `tensor.device`, `is_cuda`, tables keyed by device, CUDA's autocast and
the engine of autograd behave as on a GPU. A dispatch mode runs the operators on what is held.

Kinds of events:

- `mixed`: an operator got tensors of both devices, and raised, as on CUDA.
- `wait`: the host waits for the device: item, bool(), nonzero, boolean indexing, .cpu(), blocking copies to the device.
- `pageable`: a copy to the device was asked not to block, and the memory it reads is not pinned.
- `unsupported`: an operator that CUDA does not have for this dtype, such as a Fourier transform of bfloat16; it raised.
- `unordered`: an operator whose CUDA kernel adds in no fixed order (torch's own list).
- `unfused`: attention that no fused kernel of CUDA takes, so that it writes out queries by keys.

`device.launches` estimates the kernels launched. With `values=False` the tensors hold nothing (torch's `meta` device):
steps of any size cost no time, and a wait raises.

Needs Linux and g++ (as `torch.compile` does), and changes the process for good: use it in a process of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import torch._dynamo  # before torch is patched: it looks at functions by identity
import torch.nn.functional as F
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.pretended_cuda import attention

aten = torch.ops.aten
CUDA = torch.device("cuda:0")
GUARD = """
#include <new>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace {
using namespace c10;
struct Hooks : at::CUDAHooksInterface {
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
};
static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface));
struct Guard : impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  static Device only() { return Device(DeviceType::CUDA, 0); }
  static Stream stream() { return Stream(Stream::DEFAULT, only()); }
  Device exchangeDevice(Device) const override { return only(); }
  Device getDevice() const override { return only(); }
  Stream getStream(Device) const noexcept override { return stream(); }
  Stream getDefaultStream(Device) const override { return stream(); }
  Stream getNewStream(Device, int) const override { return stream(); }
  Stream exchangeStream(Stream) const noexcept override { return stream(); }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
};
}
extern "C" void pretend() {
  impl::registerDeviceGuard(DeviceType::CUDA, new Guard());
  new (const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks())) Hooks();
}
"""
"""A device guard that does nothing and a hook that says there is a device. The engine of autograd asks for both."""

WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "bincount", "unique_consecutive",
    "_unique2", "unique_dim", "item", "_assert_scalar", "multinomial", "histc",
}  # fmt: skip
UNORDERED = {
    "index_add", "index_add_", "scatter_add", "scatter_add_", "put_", "bincount", "histc", "kthvalue", "embedding_bag",
    "_scaled_dot_product_efficient_attention_backward", "_scaled_dot_product_flash_attention_backward",
    "max_pool2d_with_indices_backward", "reflection_pad1d_backward", "replication_pad1d_backward",
    "upsample_bilinear2d_backward", "convolution_backward", "_adaptive_avg_pool2d_backward", "grid_sampler_2d_backward",
}  # fmt: skip
"""From the list of torch.use_deterministic_algorithms; convolution_backward by the choice of cuDNN."""
UNORDERED_FOR_REALS = {"cumsum", "cumsum_", "cumprod", "scatter_reduce", "scatter_reduce_"}
NOT_FOR_HALF = {
    "_fft_r2c", "_fft_c2r", "_fft_c2c", "linalg_qr", "_linalg_svd", "linalg_inv_ex", "linalg_lu_factor_ex",
    "linalg_cholesky_ex", "_linalg_eigh", "triangular_solve", "linalg_solve_triangular", "polar", "complex",
    "view_as_complex", "linalg_householder_product",
}  # fmt: skip
TRANSFERS = {"_to_copy", "copy_", "_copy_from", "_copy_from_and_resize", "copy"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
SCALARS_OF_THE_CPU = {
    "index_put", "index_put_", "_index_put_impl_", "masked_fill", "masked_fill_", "fill_", "where", "copy_",
    "full_like",
}  # fmt: skip
"""Operators that are not elementwise and take a CPU tensor without axes beside tensors on the device."""
NO_LAUNCH = {
    "_reshape_alias", "detach", "alias", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty",
    "_unsafe_view", "new_empty_strided", "resize_", "_local_scalar_dense",
}  # fmt: skip
SEVERAL_LAUNCHES = {
    "native_layer_norm_backward": 2, "sort": 4, "argsort": 4, "unique_consecutive": 6, "nonzero": 3,
    "embedding_dense_backward": 6, "_scaled_dot_product_efficient_attention_backward": 3, "_fft_r2c": 2, "_fft_c2r": 3,
    "_fft_c2c": 2, "convolution_backward": 3, "_index_put_impl_": 6, "native_group_norm_backward": 3,
    "repeat_interleave": 3, "logsumexp": 5, "linalg_vector_norm": 2, "_foreach_norm": 3,
}  # fmt: skip
"""Estimates, from the sources of torch."""
OWN_FOLDERS = ("attention_zoo", "contextpool", "lra", "runners", "tests")
STAGED_AT_ONCE = 2**16
"""Bytes of pageable memory that CUDA copies aside without waiting for the stream."""
_cuda_generators: set[int] = set()
"""Addresses; the Python object that reaches an operator is another one."""


@dataclass(frozen=True)
class Event:
    """Something that a GPU would not like, or would wait for."""

    kind: str
    operator: str
    where: str
    """File and line, and in the backward pass its node."""
    function: str
    """File and function."""
    detail: str = ""


class OnCuda(torch.Tensor):
    """A tensor that says it is on a GPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held):
        out = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=CUDA, requires_grad=False,
        )  # fmt: skip
        out.held = held
        return out

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is aten._has_compatible_shallow_copy_type.default:
            return isinstance(args[0], OnCuda) == isinstance(args[1], OnCuda)
        raise RuntimeError(f"{func}: a pretended CUDA tensor outside of `pretended_cuda`")

    def __repr__(self):
        return f"OnCuda({self.held!r})"

    def __reduce_ex__(self, protocol):
        return self.detach().cpu().__reduce_ex__(protocol)  # so that it can be saved; CUDA would keep the device's name

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_, **__):
        self.numpy()

    def __deepcopy__(self, memo):
        return memo.setdefault(id(self), self.detach().clone().requires_grad_(self.requires_grad))


class _Generator(torch.Generator):
    """A generator that knows for which device it was made; its numbers are those of the CPU."""

    def __new__(cls, device="cpu"):
        out = super().__new__(cls, "cpu")
        known = _cuda_generators.add if torch.device(device).type == "cuda" else _cuda_generators.discard
        known(out._cdata)
        return out


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    """Stand in for `Tensor.pin_memory`."""
    out = tensor.clone()
    out.is_pinned_memory = True
    return out


class PretendedCuda(TorchDispatchMode):
    """Runs what is asked of `cuda` on the CPU and notes what a GPU would not do, or would wait for."""

    def __init__(self, root: Path, *, values: bool = True) -> None:
        super().__init__()
        self.root = root
        self.home = torch.device("cpu" if values else "meta")
        """Where the tensors really are."""
        self.events: Counter[Event] = Counter()
        self.launches = 0
        self.lines: Counter[str] = Counter()
        """Launches by the line that made them."""

    def reset(self) -> None:
        """Forget what was seen."""
        self.events.clear()
        self.lines.clear()
        self.launches = 0

    def note(self, kind: str, operator: str, detail: str = "") -> None:
        """Note an event at the innermost line of the project."""
        where, function = self._place()
        self.events[Event(kind, operator, where, function, detail)] += 1

    def _place(self) -> tuple[str, str]:
        node = torch._C._current_autograd_node()
        backward = "" if node is None else f" ({node.name()})"
        frame, own = sys._getframe(2), {__file__, attention.__file__}
        while frame is not None:
            name = frame.f_code.co_filename
            if name.startswith(str(self.root)) and name not in own:
                relative = os.path.relpath(name, self.root)
                if Path(relative).parts[0] in OWN_FOLDERS:
                    return f"{relative}:{frame.f_lineno}{backward}", f"{relative}:{frame.f_code.co_name}"
            frame = frame.f_back
        return backward.strip() or "?", "?"

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func._schema.name.split("::")[1]
        if func.namespace in OWN_FOLDERS and any(isinstance(each, OnCuda) for each in args):
            with self:  # the insides of an operator of the project count
                return OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
        if func._can_decompose():  # below autograd, composite operators arrive whole
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if name == "_has_compatible_shallow_copy_type":
            return isinstance(args[0], OnCuda) == isinstance(args[1], OnCuda)

        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        there = [each for each in tensors if isinstance(each, OnCuda)]
        asked = kwargs.get("device")
        asked = None if asked is None else torch.device(asked).type
        if not there and asked != "cuda":
            return func(*args, **kwargs)
        self._inspect(func, name, args, kwargs, tensors, asked)
        if not func.is_view and name not in NO_LAUNCH:
            self.launches += SEVERAL_LAUNCHES.get(name, 1)
            self.lines[self._place()[0]] += SEVERAL_LAUNCHES.get(name, 1)

        held = {id(each.held): each for each in there}
        args, kwargs = tree_map(lambda each: each.held if isinstance(each, OnCuda) else each, (args, kwargs))
        if asked is not None:
            kwargs["device"] = self.home if asked == "cuda" else torch.device(asked)
            kwargs.pop("pin_memory", None)
        if self.home.type == "meta":
            kwargs.pop("generator", None)
            if asked == "cpu" and there:
                raise RuntimeError(f"{name}: the device holds no values that could come back")
        if name == "resize_":
            args[0].resize_(args[1])
            there[0].data = OnCuda(there[0].held)
            return there[0]
        out = attention.KERNELS.get(name, func)(*args, **kwargs)
        return out if asked == "cpu" else tree_map(lambda each: self._wrapped(each, held), out)

    @staticmethod
    def _wrapped(value, held):
        if not isinstance(value, torch.Tensor):
            return value
        # The bits that say conjugate or negative would be lost on the wrapper.
        value = value.resolve_conj() if value.is_conj() else value
        value = value.resolve_neg() if value.is_neg() else value
        return held[id(value)] if id(value) in held else OnCuda(value)

    def _inspect(self, func, name, args, kwargs, tensors, asked) -> None:
        on_cpu = [each for each in tensors if not isinstance(each, OnCuda)]
        if name in TRANSFERS:
            self._note_transfer(name, args, kwargs, asked)
        else:
            if on_cpu and len(on_cpu) < len(tensors):
                self._refuse_mixed(func, name, args, on_cpu)
            chosen = [each for each in args[1] if each is not None] if name in INDEXING else []
            by_mask = any(each.dtype in (torch.bool, torch.uint8) for each in chosen)
            unsized = name == "repeat_interleave" and kwargs.get("output_size") is None
            if name in WAITS or by_mask or unsized:
                self.note("wait", name)
        half = [each.dtype for each in tensors if each.dtype in (torch.float16, torch.bfloat16)]
        if half and name in NOT_FOR_HALF:
            self.note("unsupported", name, str(half[0]))
            raise RuntimeError(f"{name}: not implemented on CUDA for {half[0]}")
        if name in UNORDERED or (name in UNORDERED_FOR_REALS and tensors[0].is_floating_point()):
            self.note("unordered", name)
        generator = kwargs.get("generator")
        if generator is not None and generator._cdata not in _cuda_generators:
            self.note("mixed", name, "a generator of the CPU")
            raise RuntimeError(f"{name}: Expected a 'cuda' device type for generator but found 'cpu'")

    def _refuse_mixed(self, func, name, args, on_cpu) -> None:
        if torch.Tag.pointwise in func.tags or name in SCALARS_OF_THE_CPU:
            on_cpu = [each for each in on_cpu if each.dim() > 0]
        if name in INDEXING:
            indices = [each for each in args[1] if each is not None]
            if any(each is index for each in on_cpu for index in indices):
                self.note("wait", name, "an index on the CPU is copied in each call")
            on_cpu = [each for each in on_cpu if not any(each is index for index in indices)]
        if on_cpu:
            self.note("mixed", name, str([tuple(each.shape) for each in on_cpu]))
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({name} at {self._place()[0]})"
            )

    def _note_transfer(self, name, args, kwargs, asked) -> None:
        source = args[0] if name == "_to_copy" else args[1]
        from_there = isinstance(source, OnCuda)
        if name == "_to_copy":
            to_there = asked == "cuda" or (from_there and asked is None)
        else:
            to_there = isinstance(args[0], OnCuda)
        if from_there == to_there:
            return
        non_blocking = kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False)
        if from_there:
            self.note("wait", name, "device to host")
        elif not non_blocking:
            self.note("wait", name, "host to device, blocking")
        elif not hasattr(source, "is_pinned_memory"):
            large = source.numel() * source.element_size() > STAGED_AT_ONCE
            self.note("pageable", name, "waits for the stream: more than 64 KiB" if large else "")

    def attention(
        self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
    ):
        """Stand in for F.scaled_dot_product_attention: choose a kernel as on CUDA, and run it."""
        if not isinstance(query, OnCuda):
            return torch._C._nn.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            query, key, value = (each.to(dtype) for each in (query, key, value))
            if attn_mask is not None and attn_mask.is_floating_point():
                attn_mask = attn_mask.to(dtype)
        if attn_mask is not None and is_causal:
            raise RuntimeError("Explicit attn_mask should not be set when is_causal=True")
        reason = attention.why_unfused(query, key, value, attn_mask)
        if reason:
            self.note("unfused", "scaled_dot_product_attention", reason)
        with torch.autocast("cuda", enabled=False):
            bias = attn_mask
            if bias is not None:
                if bias.dtype == torch.bool:
                    bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill_(~bias, -torch.inf)
                elif bias.dtype != query.dtype:
                    raise RuntimeError("Expected attn_mask dtype to be bool or to match query dtype")
                bias = bias.expand(*query.shape[:3], key.shape[2])
            return aten._scaled_dot_product_efficient_attention(
                query, key, value, bias, True, dropout_p, is_causal, scale=scale
            )[0]


def install_guard() -> None:
    """Compile the guard (g++, seconds, once for a version of torch) and load it for the rest of the process."""
    torch_folder, mark = Path(torch.__file__).parent, hashlib.sha256(GUARD.encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"pretended-cuda-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{torch.__version__}-{mark}.so"
    if not library.is_file():
        source, made = library.with_suffix(f".{os.getpid()}.cpp"), library.with_suffix(f".{os.getpid()}.so")
        source.write_text(GUARD)
        subprocess.run(
            [
                "g++", "-O1", "-shared", "-fPIC", "-std=c++20", f"-I{torch_folder}/include", source, "-o", made,
                f"-L{torch_folder}/lib", "-lc10", "-ltorch_cpu",
                f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
            ],
            check=True,
        )  # fmt: skip
        source.unlink()
        made.replace(library)
    ctypes.CDLL(str(library)).pretend()


@contextlib.contextmanager
def pretended_cuda(root: Path, *, values: bool = True) -> Iterator[PretendedCuda]:
    """Make `cuda` a device until the context ends.

    Args:
        root: Folder of the project, whose lines the events name.
        values: Whether tensors hold values; without them only shapes are known.
    """
    install_guard()
    mode, cuda = PretendedCuda(root, values=values), torch.cuda
    lifted, threads = torch._C._only_lift_cpu_tensors(), torch.autograd.is_multithreading_enabled()
    with contextlib.ExitStack() as stack:
        for owner, name, value in [
            (cuda, "is_available", lambda: True),
            (cuda, "_lazy_init", lambda: None),
            (cuda, "device_count", lambda: 1),
            (cuda, "current_device", lambda: 0),
            (cuda, "is_bf16_supported", lambda *_, **__: True),
            (cuda, "get_device_name", lambda *_: "Pretended GPU"),
            (cuda, "synchronize", lambda *_: None),
            (cuda, "reset_peak_memory_stats", lambda *_: None),
            (cuda, "max_memory_allocated", lambda *_: 0),
            (cuda, "max_memory_reserved", lambda *_: 0),
            (cuda, "empty_cache", lambda: None),
            (cuda, "manual_seed_all", lambda _: None),
            (torch.Tensor, "pin_memory", _pinned),
            (cuda, "is_current_stream_capturing", lambda: False),
            (cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.nn.utils.clip_grad, "_has_foreach_support", lambda *_: True),  # it asks for plain tensors
            (torch, "Generator", _Generator),
            (torch, "_has_compatible_shallow_copy_type", lambda a, b: isinstance(a, OnCuda) == isinstance(b, OnCuda)),
            (F, "scaled_dot_product_attention", mode.attention),
        ]:
            stack.enter_context(mock.patch.object(owner, name, value))
        torch._C._set_only_lift_cpu_tensors(True)
        torch._C._set_multithreading_enabled(False)
        try:
            with mode:
                yield mode
        finally:
            torch._C._set_only_lift_cpu_tensors(lifted)
            torch._C._set_multithreading_enabled(threads)
