"""One model shared by all processes while it is trained (FSDP2), and whole again afterwards.

Inside `sharded` a process holds its part of each parameter, gradient and AdamW moment, and gathers
a layer when its turn comes. Checkpoints are whole, so that a run goes on with any number of
processes, sharded or not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
from torch.distributed._composable_state import _module_state_mapping
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import UsageError
from ..recipe import TrainingSettings
from . import processes


def check(settings: TrainingSettings, *, looped: bool, writes: bool) -> None:
    """Refuse to share a model in ways that would hang, or that nobody has tried.

    - `looped`: it runs its layers several times; `writes`: it generates rows to train on.

    Raises `UsageError`.
    """
    reasons = {
        "looped models run their layers several times": looped,
        "processes generate rows of different lengths": writes,
        "processes would use the prefix encoder at different times": "masked_prefix"
        in settings.objective,
        "objective 'align' calls attention layers one by one": "align" in settings.objective,
        "float16 scales gradients; use training.dtype=bfloat16": settings.dtype == "float16",
    }
    told = [reason for reason, holds in reasons.items() if holds]
    if settings.shard and told:
        raise UsageError(f"training.shard=true is not supported here: {told[0]}; leave it out")


@contextlib.contextmanager
def sharded(model: nn.Module, *, asked: bool) -> Iterator[None]:
    """Share the parameters among all processes inside the block, where that is asked for.

    - `model`: alike in every process, on the device it is trained on; sharded in place, one group
      of parameters per decoder layer. Every forward pass is then one of all processes.

    After an exception the parts are not gathered, and the model is of no more use.
    """
    if not asked or processes.count() == 1:
        yield
        return
    with processes.connected():
        _shard(model, next(model.parameters()).device)
    yield
    with processes.connected():
        _gather(model)


def is_sharded(model: nn.Module) -> bool:
    """Whether a forward pass needs all processes."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; where it is shared, every process has to ask."""
    if not isinstance(tensor, DTensor):
        return tensor
    with processes.connected():
        return tensor.full_tensor()


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """Of a whole tensor that every process has, what it holds of it if it holds `other`."""
    if not isinstance(other, DTensor) or tensor.shape != other.shape:
        return tensor
    tensor = tensor.to(other.device)
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def _shard(model: nn.Module, device: torch.device) -> None:
    mesh = init_device_mesh(device.type, (processes.count(),))
    names = {name for module in model.modules() for name in getattr(module, _LAYERS, None) or ()}
    layers = [module for module in model.modules() if type(module).__name__ in names]
    for module in (*layers, model):
        fully_shard(module, mesh=mesh)
        # The loss is weighted by each process's share of the targets: gradients are summed.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other


_LAYERS = "_no_split_modules"  # where transformers names the classes of decoder layers


@torch.no_grad()
def _gather(model: nn.Module) -> None:
    """Make an ordinary model of a sharded one. torch has no way back, so its traces are removed."""
    marked = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in marked:
        module.reshard()
    found: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if isinstance(parameter, DTensor):
                if id(parameter) not in found:  # tied parameters stay tied
                    found[id(parameter)] = nn.Parameter(
                        parameter.full_tensor(), requires_grad=parameter.requires_grad
                    )
                module._parameters[name] = found[id(parameter)]
    for module in marked:
        state = module._get_fsdp_state()
        state._pre_forward_hook_handle.remove()
        state._post_forward_hook_handle.remove()
        module.__class__ = type(module).__mro__[FSDPModule._orig_cls_mro_index]
        _module_state_mapping.pop(module)
        for key in (STATE_KEY, REGISTRY_KEY):
            module.__dict__.pop(key, None)
    for module in model.modules():
        for key in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):
            module.__dict__.pop(key, None)
