# SPDX-License-Identifier: Apache-2.0
"""The state dict of a model: how it is copied, and how a model takes it up without a bit that is another."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lra.results.checkpoints import weights_digest


def copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy a state dict to the memory of the host, with the layouts and the sharing that its tensors have."""
    return copy.deepcopy({name: value.detach().cpu() for name, value in weights.items()})


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a state dict; tensors become what they are there: training may have changed their types and layouts.

    `load_state_dict` writes into the tensors of the model, which others may hold too. One that is of another type or
    layout in the state, or shares its memory with others, is made anew. What shares memory in the state shares it in
    the model.

    Raises:
        RuntimeError: The state is of another model, or the model changes what it loads.
    """
    own = model.state_dict()
    here, there = _layouts(own), _layouts(weights)
    places = {
        f"{prefix}.{name}".removeprefix("."): (module, name)
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name in (*module._parameters.keys(), *module._buffers.keys())  # also what is None so far
    }
    shapes = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
    anew = {
        key: place
        for key, place in places.items()
        if key in weights
        and weights[key].shape == shapes.get(key, weights[key].shape)  # else the state is of another model
        and (here.get(key) != there[key] or 0 in weights[key].stride())  # nothing can be written into an expanded one
    }
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    copies = copied({key: weights[key] for key in anew})
    for key, (module, name) in anew.items():
        _place(module, name, copies[key].contiguous().to(device))
    state = model.state_dict()  # which has the versions of the modules
    state.clear()
    state.update(weights)
    model.load_state_dict(state)
    owners = {_memory(weights[key]): key for key in own if key not in anew}
    for key, (module, name) in anew.items():
        saved, owner = copies[key], owners.get(_memory(weights[key]))
        if owner is None:
            _place(module, name, saved.to(device))
        else:
            begin = saved.storage_offset() - weights[owner].storage_offset() + own[owner].storage_offset()
            _place(module, name, own[owner].as_strided(saved.shape, saved.stride(), begin))
    if weights_digest(model.state_dict()) != weights_digest(weights):
        raise RuntimeError("the model changes its state when it is loaded, so its runs cannot go on from one")


def _place(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a buffer, or into a parameter, which stays the one that an optimizer has."""
    held = getattr(module, name)
    if isinstance(held, nn.Parameter):
        held.data = tensor
    else:
        setattr(module, name, tensor)


def _layouts(state: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    """Return type and layout of each tensor, and the first one that it shares memory with."""
    first = {_memory(state[name]): name for name in sorted(state, reverse=True)}
    return {
        name: (tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, first[_memory(tensor)])
        for name, tensor in state.items()
    }


def _memory(tensor: Tensor) -> tuple[int, torch.dtype]:
    return tensor.untyped_storage()._cdata, tensor.dtype  # `data_ptr` is refused where there is no memory to point to
