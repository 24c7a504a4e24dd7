"""Operations without a derivative, and dropout."""

from __future__ import annotations

import torch

from ..jet import Jet
from ..registry import CONSTANT, rule
from .arithmetic import mul

CONSTANT.update(
    "eq ne lt le gt ge greater less equal not_equal greater_equal less_equal __eq__ __ne__ __lt__ __le__ "
    "__gt__ __ge__ isnan isinf isfinite isclose allclose logical_and logical_or logical_not logical_xor "
    "__and__ __or__ __xor__ __invert__ bitwise_and bitwise_or bitwise_not "
    "floor ceil round trunc fix sign sgn signbit heaviside floor_divide __floordiv__ "
    "argmax argmin argsort searchsorted bucketize nonzero count_nonzero any all "
    "zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros new_ones new_full "
    "new_empty new_tensor detach size sym_size sym_stride sym_numel dim ndimension numel nelement stride "
    "storage_offset is_contiguous is_floating_point is_complex is_conj is_neg is_same_size get_device "
    "element_size data_ptr item tolist __len__ __bool__ __float__ __int__ __index__ __contains__ __hash__ "
    "__repr__ __format__ bool int long short char byte bernoulli multinomial _assert_tensor_metadata "
    "_assert_async _has_compatible_shallow_copy_type is_nonzero is_inference is_shared is_pinned "
    "result_type can_cast is_tensor is_signed dense_dim has_names register_hook retain_grad".split()
)


@rule("dropout")
def dropout(a: Jet, p: float = 0.5, train: bool = True, inplace: bool = False) -> Jet:
    """One mask for the value and its derivatives."""
    if not train or p == 0:
        return a
    return mul(a, torch.dropout(torch.ones_like(a.primal), p, True))


@rule("dropout1d", "dropout2d", "dropout3d", "feature_dropout")
def dropout_channels(a: Jet, p: float = 0.5, training: bool = True, inplace: bool = False) -> Jet:
    return mul(a, torch.feature_dropout(torch.ones_like(a.primal), p, True)) if training and p else a


@rule("broadcast_tensors")
def broadcast_tensors(*tensors: object) -> list:
    from .shape import expand

    shape = torch.broadcast_shapes(*[tuple(each.shape) for each in tensors])
    return [expand(each, *shape) if isinstance(each, Jet) else each.expand(shape) for each in tensors]
